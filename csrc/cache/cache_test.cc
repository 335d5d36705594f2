#include "cache/cache.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "cache/replay.h"
#include "cache/reuse_biased.h"
#include "cache/reuse_columns.h"
#include "testing/check.h"

namespace remoe {
namespace {

Geometry Shape(int n_layers, int n_experts, int n_slots) {
  Geometry geometry;
  geometry.n_layers = n_layers;
  geometry.n_experts = n_experts;
  geometry.n_slots = n_slots;
  return geometry;
}

std::unique_ptr<Policy> Make(const std::string& name, const Geometry& geometry) {
  auto made = MakePolicy(name, geometry);
  CHECK_OK(made.status());
  return std::move(made.value());
}

Event MakeEvent(int layer, int64_t step, const std::vector<uint16_t>& experts) {
  Event event;
  event.layer = layer;
  event.step = step;
  event.experts = experts.data();
  event.n = static_cast<int>(experts.size());
  return event;
}

TEST(UnknownPolicyIsNamed) {
  const auto made = MakePolicy("mru", Shape(1, 4, 2));
  CHECK_EQ(made.ok(), false);
  CHECK(made.status().message().find("mru") != std::string::npos);
  CHECK(made.status().message().find("belady") != std::string::npos);
}

TEST(NamesMatch) {
  for (const std::string& name : PolicyNames()) {
    CHECK_EQ(std::string(Make(name, Shape(2, 4, 3))->name()), name);
  }
  CHECK_EQ(LivePolicyNames().size() + 1, PolicyNames().size());
}

TEST(WithASlotForEachALayersExpertsLieInTheirOrder) {
  const Geometry shape = Shape(3, 8, 24);
  Cache cache(shape, Make("lru", shape));
  cache.PreferOwnSlots();
  std::vector<Placement> placed;
  const std::vector<std::vector<uint16_t>> orders = {{5, 0, 7}, {3, 1}, {6, 2, 4}};
  CHECK_EQ(cache.BeginPrefetch(1, 6), 14);
  for (const std::vector<uint16_t>& experts : orders) {
    for (int layer = 2; layer >= 0; layer--) {
      CHECK_OK(cache.Begin(MakeEvent(layer, 0, experts), &placed));
      for (const Placement& each : placed) CHECK_EQ(each.slot, layer * 8 + each.expert);
      cache.End();
    }
  }
  CHECK_EQ(cache.resident(), 24);
  CHECK_EQ(cache.counts().evictions, 0u);
}

TEST(AnExpertWhoseOwnSlotIsTakenGetsAnother) {
  const Geometry shape = Shape(2, 4, 6);
  Cache cache(shape, Make("lru", shape));
  cache.PreferOwnSlots();
  std::vector<Placement> placed;
  const std::vector<uint16_t> experts = {0, 1, 2, 3};
  for (int step = 0; step < 6; step++) {
    CHECK_OK(cache.Begin(MakeEvent(step % 2, step, experts), &placed));
    std::set<SlotId> slots;
    for (const Placement& each : placed) {
      CHECK(each.slot >= 0 && each.slot < 6 && slots.insert(each.slot).second);
    }
    cache.End();
  }
}

TEST(AResizedCacheKeepsWhomThePolicyKeeps) {
  for (const std::string& policy : LivePolicyNames()) {
    const Geometry shape = Shape(2, 8, 6);
    Cache cache(shape, Make(policy, shape), 1);
    std::vector<Placement> placed;
    std::vector<SlotMove> moves;
    const std::vector<uint16_t> first = {0, 1, 2}, second = {3, 4, 5};
    CHECK_OK(cache.Begin(MakeEvent(0, 0, first), &placed));
    cache.End();
    CHECK_OK(cache.Begin(MakeEvent(1, 0, second), &placed));
    cache.End();
    cache.Resize(4, 0, &moves);
    CHECK_EQ(cache.total_slots(), 4);
    CHECK_EQ(cache.resident(), 4);
    CHECK_EQ(cache.counts().evictions, 2u);
    std::set<SlotId> used;
    for (int layer = 0; layer < 2; layer++) {
      for (int expert = 0; expert < 8; expert++) {
        const SlotId slot = cache.SlotOf(layer, expert);
        if (slot != kNoSlot) CHECK(slot < 4 && used.insert(slot).second);
      }
    }
    // Who was in the last slots has moved into those of who left.
    for (const SlotMove& move : moves) {
      CHECK(move.from >= 4 && move.to < 4 && used.count(move.to) == 1);
    }
    // Five at once do not fit any more, and do again once there is room.
    const std::vector<uint16_t> five = {0, 1, 2, 3, 4};
    CHECK(!cache.Begin(MakeEvent(0, 1, five), &placed).ok());
    cache.Resize(9, 2, &moves);
    CHECK(moves.empty());
    CHECK_EQ(cache.total_slots(), 11);
    CHECK_OK(cache.Begin(MakeEvent(0, 1, five), &placed));
    cache.End();
    CHECK(cache.resident() <= 9);
    // As small as one slot, and everything is still in order.
    cache.Resize(1, 0, &moves);
    CHECK_EQ(cache.resident(), 1);
    CHECK_OK(cache.Begin(MakeEvent(1, 2, {7}), &placed));
    CHECK_EQ(placed[0].slot, 0);
    cache.End();
  }
}

TEST(ExpendableExpertsLeaveFirstAndInTheirOrder) {
  for (const std::string& policy : LivePolicyNames()) {
    Cache cache(Shape(2, 8, 6), Make(policy, Shape(2, 8, 6)));
    std::vector<Placement> placed;
    const std::vector<uint16_t> first = {1, 2, 3, 4}, second = {2}, third = {0, 1, 2};
    Event event = MakeEvent(0, 0, first);
    event.phase = Phase::kPrefill;
    event.n_expendable = 2;
    CHECK_OK(cache.Begin(event, &placed));
    cache.End();
    Event again = MakeEvent(0, 1, second);  // used again: expendable no longer
    again.phase = Phase::kPrefill;
    CHECK_OK(cache.Begin(again, &placed));
    cache.End();
    Event next = MakeEvent(1, 1, third);
    next.phase = Phase::kPrefill;
    CHECK_OK(cache.Begin(next, &placed));
    cache.End();
    CHECK_EQ(cache.SlotOf(0, 1), kNoSlot);
    for (int expert = 2; expert <= 4; expert++) CHECK(cache.SlotOf(0, expert) != kNoSlot);
    CHECK_EQ(cache.counts().evictions, 1u);
  }
}

TEST(ExpendableExpertsThatThePolicyChoseAreLikeOthersOnceThePromptIsOver) {
  const Geometry shape = Shape(2, 8, 6);
  Cache expending(shape, Make("reuse-biased", shape)), keeping(shape, Make("reuse-biased", shape));
  std::vector<Placement> placed;
  const std::vector<uint16_t> experts[2] = {{1, 2, 3, 4}, {0, 1}};
  for (Cache* cache : {&expending, &keeping}) {
    for (int layer = 0; layer < 2; layer++) {
      Event event = MakeEvent(layer, 0, experts[layer]);
      event.phase = Phase::kPrefill;
      event.n_expendable = cache == &expending && layer == 1 ? 2 : 0;
      CHECK_OK(cache->Begin(event, &placed));
      cache->End();
    }
    for (int step = 1; step < 4; step++) {
      CHECK_OK(cache->Begin(MakeEvent(0, step, {1, static_cast<uint16_t>(4 + step)}), &placed));
      cache->End();
    }
  }
  for (int layer = 0; layer < 2; layer++) {
    for (int expert = 0; expert < 8; expert++) {
      CHECK_EQ(expending.SlotOf(layer, expert), keeping.SlotOf(layer, expert));
    }
  }
}

TEST(ReuseBiasedSpendsWhatItThinksLeastOf) {
  Cache cache(Shape(1, 8, 4), Make("reuse-biased", Shape(1, 8, 4)));
  std::vector<Placement> placed;
  for (int step = 0; step < 4; step++) {  // expert 1 again and again, the others once
    CHECK_OK(cache.Begin(MakeEvent(0, step, {1, static_cast<uint16_t>(step + 2)}), &placed));
    cache.End();
  }
  const std::vector<uint16_t> both = {1, 2}, others = {6, 7};
  Event event = MakeEvent(0, 4, both);
  event.phase = Phase::kPrefill;
  event.n_expendable = 1;
  CHECK_OK(cache.Begin(event, &placed));
  cache.End();
  Event next = MakeEvent(0, 5, others);
  next.phase = Phase::kPrefill;
  CHECK_OK(cache.Begin(next, &placed));
  CHECK(cache.SlotOf(0, 1) != kNoSlot);
  CHECK_EQ(cache.SlotOf(0, 2), kNoSlot);
}

int ColumnOf(const std::string& name) {
  for (int i = 0; i < kReuseColumnCount; i++) {
    if (name == kReuseColumns[i].name) return i;
  }
  CHECK(false);
  return -1;
}

// Tokens of several conversations do not follow one another: how much a layer keeps from token to
// token is not learned from them.
TEST(ReuseBiasedLearnsNothingFromNeighboursInAStep) {
  Geometry geometry;
  geometry.n_layers = 1;
  geometry.n_experts = 16;
  geometry.n_slots = 8;
  const uint16_t ids[] = {0, 1, 0, 1, 0, 1}, experts[] = {0, 1};
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    ReuseBiasedPolicy policy(geometry, nullptr);
    Event event;
    event.phase = phase;
    event.n_tokens = 3;
    event.experts = experts;
    event.n = event.top_k = 2;
    event.ids = ids;
    for (event.step = 0; event.step < 5; event.step++) policy.OnEvent(event);
    event.n_tokens = 1;  // nor is what comes after such a step
    event.ids = nullptr;
    event.phase = Phase::kDecode;
    policy.OnEvent(event);
    const float locality = policy.FeatureColumn(ColumnOf("locality-log-idle"))[5] /
                           policy.FeatureColumn(ColumnOf("log-idle"))[5];
    CHECK_EQ(std::fabs(locality - 0.3f) < 1e-6f, phase == Phase::kDecode);
  }
}

TEST(ReservedSlotsAreNoResidents) {
  Cache cache(Shape(1, 8, 2), Make("lru", Shape(1, 8, 2)), 1);
  CHECK_EQ(cache.total_slots(), 3);
  std::vector<Placement> placed;
  CHECK_OK(cache.Begin(MakeEvent(0, 0, {0, 1}), &placed));
  cache.End();
  CHECK_EQ(cache.BeginPrefetch(0, 5), 2);
  CHECK_EQ(cache.BeginPrefetch(0, 6), kNoSlot);
  CHECK_EQ(cache.resident(), 2);
  // The event takes over the slot, and the policy's victim leaves its own to the next guess.
  CHECK_OK(cache.Begin(MakeEvent(0, 1, {5}), &placed));
  CHECK(placed[0].prefetched && !placed[0].hit);
  CHECK_EQ(placed[0].slot, 2);
  cache.End();
  CHECK_EQ(cache.SlotOf(0, 0), kNoSlot);
  CHECK_EQ(cache.n_prefetched(), 0);
  CHECK_EQ(cache.BeginPrefetch(0, 6), 0);
  cache.EndPrefetch(0, 6);
  CHECK_EQ(cache.counts().misses, 3u);
}

TEST(WhatIsPrefetchedNeverLeavesAnEventWithoutSlots) {
  Cache cache(Shape(2, 8, 4), Make("lru", Shape(2, 8, 4)));
  std::vector<Placement> placed;
  for (int expert = 0; expert < 3; expert++)
    CHECK(cache.BeginPrefetch(1, expert, {true, true, 1, 1}) != kNoSlot);
  CHECK_EQ(cache.Fits(MakeEvent(0, 0, {0, 1})), false);
  CHECK_EQ(cache.Begin(MakeEvent(0, 0, {0, 1}), &placed).ok(), false);
  CHECK_EQ(cache.Fits(MakeEvent(1, 0, {0, 1, 2, 3})), true);
  cache.EndPrefetch(1, 2);
  CHECK_OK(cache.Begin(MakeEvent(0, 0, {0, 1}), &placed));
  cache.End();
}

TEST(SlotsAreLowestFirst) {
  Cache cache(Shape(1, 8, 4), Make("lru", Shape(1, 8, 4)));
  std::vector<Placement> placed;
  CHECK_OK(cache.Begin(MakeEvent(0, 0, {5, 2}), &placed));
  CHECK_EQ(placed[0].slot, 0);
  CHECK_EQ(placed[1].slot, 1);
  cache.End();
  CHECK_EQ(cache.SlotOf(0, 2), 1);
  CHECK_EQ(cache.SlotOf(0, 3), kNoSlot);
}

TEST(TooWideAnEventChangesNothing) {
  Cache cache(Shape(1, 8, 2), Make("lru", Shape(1, 8, 2)));
  std::vector<Placement> placed;
  const Status status = cache.Begin(MakeEvent(0, 0, {1, 2, 3}), &placed);
  CHECK(status.code() == Code::kBudgetTooSmall);
  CHECK_EQ(cache.counts().events, uint64_t{0});
  CHECK_EQ(cache.resident(), 0);
}

// Random events with failing reads, against a model of what a cache is.
TEST(EveryPolicyKeepsTheBooks) {
  for (const std::string& name : LivePolicyNames()) {
    std::mt19937 random(7);
    const Geometry geometry = Shape(3, 16, 11);
    Cache cache(geometry, Make(name, geometry));
    std::vector<Placement> placed;
    std::vector<float> probs(16);
    for (int step = 0; step < 2000; step++) {
      const int layer = step % 3;
      std::vector<uint16_t> all(16);
      for (int i = 0; i < 16; i++) all[i] = static_cast<uint16_t>(i);
      std::shuffle(all.begin(), all.end(), random);
      all.resize(random() % 12);
      for (float& p : probs) p = static_cast<float>(random() % 1000) / 1000;
      Event event = MakeEvent(layer, step / 3, all);
      if (random() % 2) event.probs = probs.data();
      event.phase = random() % 4 ? Phase::kDecode : Phase::kPrefill;
      event.n_tokens = 1 + static_cast<int>(random() % 3);
      CHECK_OK(cache.Begin(event, &placed));
      CHECK_EQ(placed.size(), all.size());
      std::set<SlotId> slots;
      for (size_t i = 0; i < placed.size(); i++) {
        CHECK_EQ(placed[i].expert, all[i]);
        CHECK_EQ(cache.SlotOf(layer, all[i]), placed[i].slot);
        slots.insert(placed[i].slot);
      }
      CHECK_EQ(slots.size(), all.size());
      for (const Placement& p : placed) {
        if (!p.hit && random() % 16 == 0) cache.Failed(p.expert);
      }
      cache.End();
      CHECK(cache.resident() <= geometry.n_slots);
      if (step % 500 == 499) {
        cache.Clear();
        CHECK_EQ(cache.resident(), 0);
      }
    }
    CHECK(cache.counts().hits > 0);
    CHECK(cache.counts().evictions > 0);
  }
}

TEST(ReservedSlotsHoldResidentsUntilTheyAreTakenBack) {
  for (const std::string& name : LivePolicyNames()) {
    const Geometry geometry = Shape(3, 16, 8);
    Cache cache(geometry, Make(name, geometry), 2);
    std::mt19937 random(7);
    std::vector<uint16_t> all(16);
    for (int i = 0; i < 16; i++) all[i] = static_cast<uint16_t>(i);
    std::vector<Placement> placed;
    bool shared = false;
    int most[2] = {0, 0};
    for (int step = 0; step < 3000; step++) {
      std::shuffle(all.begin(), all.end(), random);
      const std::vector<uint16_t> some(all.begin(), all.begin() + 1 + random() % 6);
      const int layer = static_cast<int>(random() % 3);
      CHECK_OK(cache.Begin(MakeEvent(layer, step, some), &placed));
      cache.End();
      most[shared] = std::max(most[shared], cache.resident());
      if (random() % 8 != 0) continue;
      shared = random() % 2 == 0;
      cache.ShareReserved(shared);
      CHECK(cache.resident() <= (shared ? 10 : 8));
      // What was taken back can be prefetched into.
      if (shared) continue;
      const auto gone = std::find_if(all.begin(), all.end(), [&](uint16_t expert) {
        return cache.SlotOf(0, expert) == kNoSlot;
      });
      CHECK(cache.BeginPrefetch(0, *gone) != kNoSlot);
      cache.EndPrefetch(0, *gone);
    }
    CHECK_EQ(most[false], 8);
    CHECK_EQ(most[true], 10);
  }
}

TEST(FailedAsksForAnExpertOfTheEvent) {
  Cache cache(Shape(1, 8, 4), Make("lru", Shape(1, 8, 4)));
  std::vector<Placement> placed;
  CHECK_OK(cache.Begin(MakeEvent(0, 0, {1, 2}), &placed));
  cache.Failed(7);  // not of the event: nothing happens
  cache.Failed(1);
  cache.Failed(1);  // given back already
  cache.End();
  CHECK_EQ(cache.resident(), 1);
  CHECK_EQ(cache.SlotOf(0, 2), 1);
}

TEST(NextUsesAreOfTheSameLayer) {
  const int64_t step[] = {0, 0, 1, 1};
  const uint16_t layer[] = {0, 1, 0, 1};
  const uint8_t phase[] = {1, 1, 1, 1};
  const uint32_t n_tokens[] = {1, 1, 1, 1};
  const int64_t offsets[] = {0, 2, 3, 4, 6};
  const uint16_t experts[] = {0, 1, 1, 0, 1, 2};
  EventLog log;
  log.n_events = 4;
  log.step = step;
  log.layer = layer;
  log.phase = phase;
  log.n_tokens = n_tokens;
  log.offsets = offsets;
  log.experts = experts;
  CHECK_OK(ValidateLog(log, Shape(2, 3, 4)));
  const std::vector<int64_t> uses = NextUses(log, Shape(2, 3, 4));
  const std::vector<int64_t> expected = {2, kNever, 3, kNever, kNever, kNever};
  CHECK(uses == expected);
  CHECK(ValidateLog(log, Shape(2, 2, 4)).code() == Code::kInvalidArgument);
  CHECK(ValidateLog(log, Shape(1, 3, 4)).code() == Code::kInvalidArgument);
}

TEST(WhatWasAdmittedIsResidentAndLeavesFirst) {
  Geometry geometry;
  geometry.n_layers = 2;
  geometry.n_experts = 8;
  geometry.n_slots = 4;
  for (const std::string& name : LivePolicyNames()) {
    Cache cache(geometry, std::move(MakePolicy(name, geometry).value()));
    const SlotId first = cache.BeginPrefetch(0, 3), second = cache.BeginPrefetch(1, 5);
    const SlotId unused = cache.BeginPrefetch(1, 6);
    CHECK(first != second && second != unused && unused != kNoSlot);
    cache.Admit(0, 3);
    cache.Admit(1, 5);
    cache.EndPrefetch(1, 6);
    CHECK_EQ(cache.resident(), 2);
    CHECK_EQ(cache.n_prefetched(), 0);
    // Reserved slots are not for what is to become resident.
    PrefetchSlots unreserved;
    unreserved.reserved = false;
    Cache reserving(geometry, std::move(MakePolicy(name, geometry).value()), 2);
    for (int e = 0; e < 4; e++) CHECK(reserving.BeginPrefetch(0, e, unreserved) != kNoSlot);
    CHECK_EQ(reserving.BeginPrefetch(0, 4, unreserved), kNoSlot);
    // A prompt prefetches into more slots than the reserved ones, up to all.
    Cache prompt(geometry, std::move(MakePolicy(name, geometry).value()), 2);
    for (int e = 0; e < 6; e++) CHECK(prompt.BeginPrefetch(0, e, {true, true, 0, 0}) != kNoSlot);
    CHECK_EQ(prompt.BeginPrefetch(0, 6), kNoSlot);
    CHECK_EQ(prompt.BeginPrefetch(0, 6, unreserved), kNoSlot);
    CHECK_EQ(prompt.n_prefetched(), 6);
    CHECK_EQ(cache.counts().hits + cache.counts().misses, uint64_t{0});
    const uint16_t wanted[] = {3, 1};
    Event event;
    event.experts = wanted;
    event.n = 2;
    std::vector<Placement> placements;
    CHECK_OK(cache.Begin(event, &placements));
    cache.End();
    CHECK(placements[0].hit);
    CHECK_EQ(placements[0].slot, first);
    CHECK(!placements[1].hit);
    // Three more than fit: nothing is lost count of, whoever leaves.
    const uint16_t others[] = {0, 2, 4};
    event.experts = others;
    event.n = 3;
    event.step = 1;
    CHECK_OK(cache.Begin(event, &placements));
    cache.End();
    CHECK_EQ(cache.resident(), 4);
    CHECK_EQ(cache.counts().evictions, uint64_t{2});
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Which experts belong where: hot ones here, warm ones with peers, none in two places.
#include "remote/expert_placement.h"

#include <algorithm>
#include <random>

#include "testing/check.h"

namespace remoe {
namespace {

constexpr int kLayers = 3, kExperts = 8, kTotal = kLayers * kExperts;

// Worth falls with the id.
std::vector<float> Falling() {
  std::vector<float> scores(kTotal);
  for (int id = 0; id < kTotal; id++) scores[id] = 3.0f - 0.25f * static_cast<float>(id);
  return scores;
}

// A cache of so many slots with nothing in them.
ExpertPlacement::Local Empty(size_t n_slots) {
  return {Falling(), std::vector<bool>(kTotal), n_slots};
}

int IdOf(const WishedExpert& wished) {
  return static_cast<int>(wished.layer) * kExperts + static_cast<int>(wished.expert);
}

TEST(TheBestStayHereAndTheNextGoToPeers) {
  ExpertPlacement placement(kLayers, kExperts);
  placement.Update(Empty(5));
  for (int id = 0; id < kTotal; id++) {
    CHECK_EQ(placement.hot(id / kExperts, id % kExperts), id < 5);
  }
  ExpertPlacement::Offer first, second, fixed;
  first.capacity = 4;
  second.capacity = 2;
  fixed.held = {{0, 6}};  // id 6 is with somebody for certain
  const auto wishes = placement.Wishes({first, second, fixed});
  CHECK_EQ(wishes.size(), 3u);
  CHECK_EQ(wishes[0].size(), 4u);
  CHECK_EQ(wishes[1].size(), 2u);
  CHECK(wishes[2].empty());
  std::set<int> wished;
  for (const auto& peer : wishes) {
    for (const WishedExpert& each : peer) CHECK(wished.insert(IdOf(each)).second);
  }
  CHECK(wished == (std::set<int>{5, 7, 8, 9, 10, 11}));
}

TEST(ACacheThatGrowsOrShrinksHasMoreOrLessHere) {
  ExpertPlacement placement(kLayers, kExperts);
  ExpertPlacement::Offer offer;
  offer.capacity = 3;
  for (const size_t n_slots : {5, 2, 9, 24, 30, 1}) {
    placement.Update(Empty(n_slots));
    const auto wishes = placement.Wishes({offer});
    for (size_t id = 0; id < kTotal; id++) {
      CHECK_EQ(placement.hot(static_cast<int>(id) / kExperts, static_cast<int>(id) % kExperts),
               id < n_slots);
    }
    CHECK_EQ(wishes[0].size(), std::min<size_t>(3, kTotal - std::min<size_t>(n_slots, kTotal)));
    if (!wishes[0].empty()) CHECK_EQ(IdOf(wishes[0][0]), static_cast<int>(n_slots));
  }
}

TEST(WhatAPeerHoldsStaysThere) {
  ExpertPlacement placement(kLayers, kExperts);
  placement.Update(Empty(2));
  ExpertPlacement::Offer first, second;
  first.capacity = second.capacity = 3;
  second.held = {{0, 2}, {0, 3}, {2, 7}};
  const auto wishes = placement.Wishes({first, second});
  std::set<int> its;
  for (const WishedExpert& each : wishes[1]) its.insert(IdOf(each));
  CHECK(its.count(2) == 1 && its.count(3) == 1 && its.count(23) == 0);
}

TEST(NearlyEqualExpertsDoNotChangePlaces) {
  ExpertPlacement placement(kLayers, kExperts);
  std::mt19937 random(1);
  std::vector<bool> local(kTotal);
  for (int id = 0; id < 4; id++) local[id] = true;
  for (int round = 0; round < 200; round++) {
    std::vector<float> scores(kTotal);
    for (float& score : scores) score = static_cast<float>(random() % 100) / 1000;
    placement.Update({scores, local, 4});
    for (int id = 0; id < 4; id++) CHECK(placement.hot(0, id));
  }
}

TEST(UseThatLastsMovesAnExpert) {
  ExpertPlacement placement(kLayers, kExperts);
  std::vector<bool> local(kTotal);
  local[0] = true;
  std::vector<float> scores(kTotal, -4);
  scores[0] = 2;
  placement.Update({scores, local, 1});
  CHECK(placement.hot(0, 0));
  std::swap(scores[0], scores[9]);
  placement.Update({scores, local, 1});
  CHECK(placement.hot(0, 0));  // once is not enough
  for (int round = 0; round < 60; round++) placement.Update({scores, local, 1});
  CHECK(placement.hot(1, 1) && !placement.hot(0, 0));
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

#include "cache/scores_trial.h"

#include <vector>

#include "cache/cache.h"
#include "cache/given_scores.h"
#include "testing/check.h"

namespace remoe {
namespace {

constexpr int kLayers = 2, kExperts = 12;
constexpr size_t kStride = 16;
using Row = std::vector<float>;

Geometry Shape(int n_slots) {
  Geometry geometry;
  geometry.n_layers = kLayers;
  geometry.n_experts = kExperts;
  geometry.n_slots = n_slots;
  return geometry;
}

struct Random {
  uint32_t seed = 1;
  uint32_t Below(uint32_t n) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 16) % n;
  }
  Row Scores() {
    Row row(kStride);
    for (float& each : row) each = static_cast<float>(Below(50)) / 8 - 3;
    return row;
  }
};

// One of two experts out of the layer's, and the one after it.
std::vector<uint16_t> Pair(uint32_t first) {
  return {static_cast<uint16_t>(first), static_cast<uint16_t>((first + 1) % kExperts)};
}

// An event of a cache, driven from outside.
int RunReal(Cache* cache, int layer, int64_t step, const std::vector<uint16_t>& experts) {
  Event event;
  event.layer = layer;
  event.step = step;
  event.experts = experts.data();
  event.n = static_cast<int>(experts.size());
  std::vector<Placement> placed;
  CHECK_OK(cache->Begin(event, &placed));
  cache->End();
  int missed = 0;
  for (const Placement& each : placed) missed += each.hit ? 0 : 1;
  return missed;
}

TEST(WhatIsImaginedMissesAsARealCacheDoes) {
  for (const int n_slots : {2, 3, 7, 23, 24}) {
    Random random;
    std::vector<float> given;
    std::vector<Row> rows;
    for (int i = 0; i < 600; i++) {
      rows.push_back(random.Scores());
      given.insert(given.end(), rows.back().begin(), rows.back().begin() + kExperts);
    }
    const Geometry shape = Shape(n_slots);
    Cache cache(shape, std::make_unique<GivenScoresPolicy>(shape, given.data()));
    ImaginedCache imagined(shape);
    imagined.Copy(ResidentRanks(kLayers, kExperts), n_slots);
    for (int i = 0; i < 600; i++) {
      const std::vector<uint16_t> experts = Pair(random.Below(kExperts));
      imagined.Score(i % kLayers, rows[i].data());
      CHECK_EQ(imagined.Run(i % kLayers, experts.data(), 2),
               RunReal(&cache, i % kLayers, i / kLayers, experts));
    }
  }
}

TEST(TakesOverWhoIsResident) {
  ResidentRanks real(kLayers, kExperts);
  for (int expert = 0; expert < 4; expert++) real.Offer(1, expert);
  ImaginedCache imagined(Shape(6));
  imagined.Copy(real, 6);
  const std::vector<uint16_t> there = {0, 1, 2, 3}, other = {4, 5};
  CHECK_EQ(imagined.Run(1, there.data(), 4), 0);
  CHECK_EQ(imagined.Run(1, other.data(), 2), 2);
  CHECK_EQ(imagined.Run(1, there.data(), 4), 0);
  CHECK_EQ(imagined.Run(0, other.data(), 2), 2);
  // More than fit are not taken over.
  imagined.Copy(real, 3);
  CHECK_EQ(imagined.Run(1, there.data(), 3), 0);
}

TEST(LeastIsTheLowestThatMayLeave) {
  ResidentRanks ranks(kLayers, kExperts);
  Random random;
  Row scores[kLayers] = {random.Scores(), random.Scores()};
  for (int layer = 0; layer < kLayers; layer++) ranks.Score(layer, scores[layer].data());
  std::vector<bool> offered(kLayers * kExperts);
  for (int i = 0; i < 2000; i++) {
    const int layer = static_cast<int>(random.Below(kLayers)),
              expert = static_cast<int>(random.Below(kExperts));
    const int kind = static_cast<int>(random.Below(4));
    if (kind == 0) {
      scores[layer] = random.Scores();
      ranks.Score(layer, scores[layer].data());
    } else if (kind == 1) {
      ranks.Withdraw(layer, expert);
    } else if (kind == 2) {
      ranks.Offer(layer, expert);
    } else {
      ranks.Raise(layer, expert, 0.5f);
      scores[layer][expert] += 0.5f;
    }
    if (kind == 1 || kind == 2) offered[layer * kExperts + expert] = kind == 2;
    int least = -1;
    for (int id = 0; id < kLayers * kExperts; id++) {
      CHECK_EQ(ranks.offered(id / kExperts, id % kExperts), offered[id]);
      if (!offered[id]) continue;
      const auto score = [&](int of) { return scores[of / kExperts][of % kExperts]; };
      if (least < 0 || score(id) < score(least)) least = id;
    }
    if (least >= 0) CHECK_EQ(ranks.Least(), static_cast<ExpertId>(least));
  }
}

// Pairs take turns, so that who came last comes last: one score knows it, the other has it reversed.
void TakeTurns(ScoresTrial* trial, int events, bool corrected_knows) {
  const ResidentRanks empty(kLayers, kExperts);
  for (int i = 0; i < events; i++) {
    const int now = 2 * (i % 6);
    Row knows(kStride, 0), wrong(kStride, 0);
    for (int j = 0; j < kExperts; j++) {
      knows[j] = -static_cast<float>((j / 2 * 2 - now + kExperts) % kExperts);
      wrong[j] = -knows[j];
    }
    trial->Score(0, corrected_knows ? wrong.data() : knows.data(),
                 corrected_knows ? knows.data() : wrong.data());
    trial->Run(0, Pair(static_cast<uint32_t>(now)).data(), 2, empty);
  }
}

TEST(CountsOnlyWhileItMissesLess) {
  ScoresTrial trial(Shape(6));
  trial.Fill(6);
  CHECK(!trial.pays());
  TakeTurns(&trial, 200, true);
  CHECK(trial.pays());
  TakeTurns(&trial, 400, false);
  CHECK(!trial.pays());
}

TEST(AlikeItDoesNotCount) {
  ScoresTrial trial(Shape(6));
  trial.Fill(6);
  Random random;
  const ResidentRanks empty(kLayers, kExperts);
  for (int i = 0; i < 500; i++) {
    const Row row = random.Scores();
    trial.Score(0, row.data(), row.data());
    trial.Run(0, Pair(random.Below(kExperts)).data(), 2, empty);
    CHECK(!trial.pays());
  }
}

TEST(AnyEventAndSizeMayComeAtAnyTime) {
  ScoresTrial trial(Shape(24));
  Random random;
  ResidentRanks real(kLayers, kExperts);
  for (int i = 0; i < 3000; i++) {
    if (i % 50 == 0) trial.Fill(1 + static_cast<int>(random.Below(24)));
    if (i % 31 == 0) trial.Interrupt();
    real.Offer(static_cast<int>(random.Below(kLayers)), static_cast<int>(random.Below(kExperts)));
    const Row plain = random.Scores(), corrected = random.Scores();
    trial.Score(i % kLayers, plain.data(), corrected.data());
    std::vector<uint16_t> experts;
    const uint32_t n = random.Below(kExperts + 1);
    for (uint32_t k = 0; k < n; k++) experts.push_back(static_cast<uint16_t>(k));
    trial.Run(i % kLayers, experts.data(), static_cast<int>(n), real);
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

#include "cache/online_links.h"

#include <cmath>
#include <limits>
#include <vector>

#include "testing/check.h"

namespace remoe {
namespace {

constexpr int kExperts = 20;
constexpr size_t kStride = 32;
using Row = std::vector<float>;

// One event of `layer` that chose a and b; RETURNS what `base` has become with links.
Row Choose(OnlineLinks* links, int layer, uint16_t a, uint16_t b, float base = 0) {
  const uint16_t experts[] = {a, b};
  Row used(kStride, 0), score(kStride, base);
  used[a] = used[b] = 1;
  links->Follow(layer, experts, 2, used.data(), score.data());
  links->AddTo(score.data(), layer, experts, 2);
  return score;
}

// Pairs 0-1, 2-3 ... 18-19 come in turn, `stride` pairs on from one event to the next.
void Turn(OnlineLinks* links, int layer, int events, int stride) {
  for (int i = 0; i < events; i++) {
    const int pair = i * stride % (kExperts / 2);
    Choose(links, layer, static_cast<uint16_t>(2 * pair), static_cast<uint16_t>(2 * pair + 1));
  }
}

OnlineLinks Made(int n_slots) {
  OnlineLinks links(2, kExperts, kStride);
  links.Fill(n_slots);
  return links;
}

TEST(KeepsNoLinksThatWouldNotFitBesideTheCache) {
  OnlineLinks links(48, 512, 512);
  links.Fill(16);
  std::vector<float> used(512, 0), score(512, 0);
  for (int i = 0; i < 400; i++) {
    const uint16_t expert = static_cast<uint16_t>(i % 2);
    used[expert] = 1;
    used[1 - expert] = 0;
    links.Follow(0, &expert, 1, used.data(), score.data());
    links.AddTo(score.data(), 0, &expert, 1);
    links.Break(1);
  }
  links.BreakAll();
  CHECK(!links.trusted(0));
  CHECK_EQ(score[0] + score[1], 0);
}

TEST(LearnsWhatFollowsInItsLayerAlone) {
  OnlineLinks links = Made(4);  // one event ahead
  Turn(&links, 1, 1000, 1);
  CHECK(links.trusted(1));
  const Row score = Choose(&links, 1, 0, 1);
  for (int j = 0; j < kExperts; j++) {
    if (j == 2 || j == 3) continue;
    CHECK(score[j] < score[2] && score[j] < score[3]);
  }
  CHECK(!links.trusted(0));
  const Row other = Choose(&links, 0, 0, 1);
  CHECK_EQ(other[2], 0);
}

TEST(LooksAsFarAsTheCacheReaches) {
  OnlineLinks near = Made(4), far = Made(12);  // one event, and three
  Turn(&near, 0, 1000, 1);
  Turn(&far, 0, 1000, 1);
  const Row soon = Choose(&near, 0, 0, 1), later = Choose(&far, 0, 0, 1);
  CHECK(soon[2] - soon[6] > 1);
  CHECK(std::fabs(later[2] - later[6]) < 0.5f);
  CHECK(later[6] - later[8] > 1);
}

TEST(CountsOnlyWhileItWins) {
  OnlineLinks links = Made(4);
  CHECK(!links.trusted(0));
  Turn(&links, 0, 1000, 1);
  CHECK(links.trusted(0));
  // No order at all: what was learned is wrong, and there is nothing to learn.
  uint32_t seed = 1;
  for (int i = 0; i < 6000; i++) {
    seed = seed * 1664525 + 1013904223;
    const auto first = static_cast<uint16_t>((seed >> 16) % kExperts);
    Choose(&links, 0, first, static_cast<uint16_t>((first + 1) % kExperts));
  }
  CHECK(!links.trusted(0));
  const Row without = Choose(&links, 0, 0, 1);
  CHECK_EQ(without[2], 0);
  Turn(&links, 0, 4000, 3);
  CHECK(links.trusted(0));
  const Row score = Choose(&links, 0, 0, 1);
  CHECK(score[6] > score[2]);
}

TEST(WhatIsBrokenOffTeachesNothing) {
  OnlineLinks links = Made(4);
  for (int i = 0; i < 500; i++) {
    links.Break(0);
    Choose(&links, 0, 0, 1);
    if (i % 2 == 0) links.BreakAll();
  }
  CHECK(!links.trusted(0));
}

TEST(ScoresThatAreNoNumbersLeaveItSound) {
  OnlineLinks links = Made(4);
  for (int i = 0; i < 50; i++) {
    Choose(&links, 0, 0, 1, std::numeric_limits<float>::quiet_NaN());
    Choose(&links, 0, 2, 3, std::numeric_limits<float>::infinity());
    Choose(&links, 0, 4, 5, -1e30f);
  }
  Turn(&links, 0, 3000, 1);
  const Row score = Choose(&links, 0, 0, 1);
  for (size_t j = 0; j < kStride; j++) CHECK(std::isfinite(score[j]));
  CHECK(score[2] > score[4]);
}

TEST(AnotherSizeOfTheCacheMayComeAtAnyTime) {
  OnlineLinks links = Made(4), same = Made(4);
  uint32_t seed = 1;
  for (int i = 0; i < 3000; i++) {
    seed = seed * 1664525 + 1013904223;
    if (i % 7 == 0) {
      links.Fill(static_cast<int>(seed >> 24) + 1);
      same.Fill(static_cast<int>(seed >> 24) + 1);
    }
    const auto a = static_cast<uint16_t>((seed >> 8) % 10),
               b = static_cast<uint16_t>(10 + (seed >> 16) % 10);
    const Row score = Choose(&links, i % 2, a, b);
    CHECK(score == Choose(&same, i % 2, a, b));  // the same events, the same bits
    for (const float each : score) CHECK(std::isfinite(each));
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

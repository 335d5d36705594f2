#include "prefetch/calibration.h"
#include "prefetch/governor.h"
#include "testing/check.h"

namespace remoe {
namespace {

TEST(CertaintyIsWhatWasSeen) {
  Calibration calibration(2, 8, 2);
  CHECK_EQ(calibration.n_ranked(), 4);
  CHECK(calibration.Certainty(0, 1, 0) < 0.6f);  // nothing seen: not certain
  const uint16_t ranked[] = {5, 1, 2, 7};
  const int32_t routed[] = {5, 7};
  for (int i = 0; i < 2000; i++) calibration.Observe(0, 1, ranked, routed);
  CHECK(calibration.Certainty(0, 1, 0) > 0.95f);
  CHECK(calibration.Certainty(0, 1, 1) < 0.05f);
  CHECK(calibration.Certainty(0, 1, 3) > 0.95f);
  CHECK(calibration.Certainty(0, 1, 6) < 0.05f);
  CHECK(calibration.Certainty(1, 1, 0) > 0.9f);  // a layer without its own takes what others saw
  CHECK(calibration.Certainty(0, 2, 0) < 0.6f);  // another distance does not
}

TEST(CertaintyFollowsAChange) {
  Calibration calibration(1, 8, 2);
  const uint16_t ranked[] = {0, 1, 2, 3};
  const int32_t right[] = {0, 1}, wrong[] = {6, 7};
  for (int i = 0; i < 1000; i++) calibration.Observe(0, 1, ranked, right);
  for (int i = 0; i < 1000; i++) calibration.Observe(0, 1, ranked, wrong);
  CHECK(calibration.Certainty(0, 1, 0) < 0.4f);
}

TEST(BatchesAreCountedByTokens) {
  Calibration calibration(2, 8, 2);
  CHECK(calibration.BatchCertainty(1, 0) < 0.6f && calibration.BatchCertainty(1, 9) > 0.9f);
  for (int i = 0; i < 400; i++) {
    calibration.ObserveBatch(1, 0, i % 10 != 0);
    calibration.ObserveBatch(1, 1, i % 10 == 0);
  }
  CHECK(calibration.BatchCertainty(1, 0) > 0.85f);
  CHECK(calibration.BatchCertainty(1, 1) < 0.15f);
  CHECK(calibration.BatchCertainty(2, 0) < 0.6f);
}

// Steps cost `off_ns` without and `on_ns` with reading ahead, beyond their reads.
void Steps(Governor* governor, int n, uint64_t off_ns, uint64_t on_ns) {
  for (int i = 0; i < n; i++) {
    const uint64_t misses = 10 + static_cast<uint64_t>(i) % 3;
    const bool on = governor->decode_reads();
    governor->OnStep((on ? on_ns : off_ns) + misses * 1000 * 2, misses, on ? 100 : 0, on ? 20 : 0);
  }
}

Governor Made() {
  Governor governor(PrefetchMode::kAuto);
  governor.SetSizes(1000, 100);
  governor.OnReads(1000, 2000);
  governor.OnWindow(1000);
  return governor;
}

constexpr int kTrialSteps = Governor::kBlocks * Governor::kBlockSteps;

TEST(AWinStaysOnUntilTheNextTrial) {
  Governor governor = Made();
  CHECK_EQ(governor.decode_reads(), false);
  CHECK_EQ(governor.decode_predicts(), true);
  Steps(&governor, Governor::kLearnSteps + kTrialSteps, 9000, 8000);
  CHECK_EQ(std::string(governor.state()), "won");
  CHECK_EQ(governor.decode_reads(), true);
  CHECK(governor.gain_ms() > 0.0009 && governor.gain_ms() < 0.0011);
  Steps(&governor, Governor::kOnSteps, 9000, 8000);
  CHECK_EQ(std::string(governor.state()), "trial");
}

TEST(ALossTurnsItOffAndTrialsGetRare) {
  Governor governor = Made();
  Steps(&governor, Governor::kLearnSteps + kTrialSteps, 8000, 9000);
  CHECK_EQ(std::string(governor.state()), "lost");
  CHECK_EQ(governor.decode_predicts(), false);
  CHECK_EQ(governor.losses(), 1u);
  Steps(&governor, Governor::kOffSteps, 8000, 9000);
  CHECK_EQ(std::string(governor.state()), "learning");
  Steps(&governor, Governor::kLearnSteps + kTrialSteps, 8000, 9000);
  CHECK_EQ(governor.losses(), 2u);
  Steps(&governor, Governor::kOffSteps, 8000, 9000);
  CHECK_EQ(std::string(governor.state()), "lost");
  Steps(&governor, Governor::kOffSteps, 8000, 9000);
  CHECK_EQ(std::string(governor.state()), "learning");
}

TEST(ReadsThatPrefetchSlowsDownAreItsCost) {
  Governor governor = Made();
  for (int i = 0; i < Governor::kLearnSteps + kTrialSteps; i++) {
    const bool on = governor.decode_reads();
    const uint64_t misses = 10 + static_cast<uint64_t>(i) % 3;
    const uint64_t read_ns = on ? 3000 : 2000;
    for (int read = 0; read < 200; read++) governor.OnReads(1000, read_ns);
    governor.OnStep((on ? 8500 : 9000) + misses * read_ns, misses, 100, 20);
  }
  CHECK_EQ(std::string(governor.state()), "lost");
}

TEST(AGainWithinTheNoiseIsNone) {
  for (const uint64_t gain : {500u, 4000u}) {
    Governor governor = Made();
    for (int i = 0; i < Governor::kLearnSteps + kTrialSteps; i++) {
      const uint64_t noise = i % 2 == 0 ? 0 : 8000;
      governor.OnStep(50000 - (governor.decode_reads() ? gain : 0) + noise, 10, 100, 20);
    }
    CHECK(governor.gain_ms() > 0);
    CHECK_EQ(std::string(governor.state()), gain > 1000 ? "won" : "lost");
  }
}

TEST(NothingIsTriedWhereThereIsNextToNoIdleTime) {
  Governor governor(PrefetchMode::kAuto);
  governor.SetSizes(1000, 100);
  governor.OnReads(1000, 2000);
  governor.OnWindow(200);
  Steps(&governor, Governor::kLearnSteps, 9000, 8000);
  CHECK_EQ(std::string(governor.state()), "lost");
  CHECK_EQ(governor.trials(), 0u);
  for (int i = 0; i < 200; i++) governor.OnWindow(1000);
  Steps(&governor, Governor::kOffSteps + Governor::kLearnSteps, 9000, 8000);
  CHECK_EQ(std::string(governor.state()), "trial");
}

TEST(ATrialComparesStepsOfOneSize) {
  Governor governor = Made();
  Steps(&governor, Governor::kLearnSteps + kTrialSteps / 2, 9000, 8000);
  CHECK_EQ(std::string(governor.state()), "trial");
  governor.OnStep(50000, 10, 100, 20, 4);  // four conversations: none of the steps before counts
  const auto together = [&](int n) {
    for (int i = 0; i < n; i++) {
      governor.OnStep(governor.decode_reads() ? 49000 : 50000, 10, 100, 20, 4);
    }
  };
  together(kTrialSteps - 1);
  CHECK_EQ(std::string(governor.state()), "trial");
  together(1);
  CHECK_EQ(std::string(governor.state()), "won");
  governor.OnStep(9000, 10, 100, 20, 1);
  CHECK_EQ(std::string(governor.state()), "won");
}

TEST(WasteEndsAWin) {
  Governor governor = Made();
  Steps(&governor, Governor::kLearnSteps + kTrialSteps, 9000, 8000);
  for (int i = 0; i < 200; i++) governor.OnStep(8000, 10, 10, 100);
  CHECK_EQ(governor.decode_reads(), false);
  CHECK_EQ(governor.losses() >= 1, true);
}

TEST(NamedModesAreObeyed) {
  Governor off(PrefetchMode::kOff), on(PrefetchMode::kOn);
  Steps(&on, 1000, 1, 1000000);
  CHECK_EQ(on.decode_reads() && on.batch_reads(), true);
  CHECK_EQ(off.decode_reads() || off.decode_predicts() || off.batch_reads(), false);
}

TEST(PromptsStopWastingAndTryAgain) {
  Governor governor = Made();
  for (int i = 0; i < 50; i++) governor.OnBatch(100, 10);
  CHECK_EQ(governor.batch_reads(), true);
  int n = 0;
  while (governor.batch_reads() && n < 1000) {
    governor.OnBatch(50, 50);
    n++;
  }
  CHECK(n < 100);
  for (int i = 0; i < Governor::kOffBatches; i++) governor.OnBatch(0, 0);
  CHECK_EQ(governor.batch_reads(), true);
}

TEST(ADelayThatCostsMoreNeedsMoreCertainty) {
  Governor governor(PrefetchMode::kAuto);
  governor.SetSizes(1000, 100);
  governor.OnReads(1000, 2000);
  CHECK(governor.NeededCertainty() > 0.9f);  // no idle time seen: nothing to win
  governor.OnWindow(1000000);
  CHECK(governor.NeededCertainty() < 0.61f);
  Governor narrow(PrefetchMode::kAuto);
  narrow.SetSizes(1000, 1000);
  narrow.OnReads(1000, 4000);
  narrow.OnWindow(1000);
  CHECK(narrow.NeededCertainty() > 0.75f);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

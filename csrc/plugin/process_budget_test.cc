// How one budget is shared out among models.
#include "plugin/process_budget.h"

#include <numeric>
#include <thread>

#include "device/testing/small_moe.h"
#include "testing/check.h"

namespace remoe::plugin {
namespace {

uint64_t Share(uint64_t budget_bytes, const std::vector<Claim>& claims, size_t i) {
  return ShareOut(budget_bytes, claims)[i];
}

TEST(OneModelGetsAllThatItCanUse) {
  CHECK_EQ(Share(1000, {{100, 5000}}, 0), 1000u);
  CHECK_EQ(Share(9000, {{100, 5000}}, 0), 5000u);
}

TEST(EveryoneHasTheirFloorAndTheRestGoesBySize) {
  const std::vector<uint64_t> shares = ShareOut(1300, {{100, 1100}, {200, 3200}});
  CHECK_EQ(shares[0], 350u);
  CHECK_EQ(shares[1], 950u);
  CHECK_EQ(Share(300, {{100, 1100}, {200, 3200}}, 1), 200u);
}

TEST(SharesNeverExceedTheBudget) {
  for (uint64_t budget = 60; budget < 4000; budget += 7) {
    const std::vector<uint64_t> shares = ShareOut(budget, {{10, 1000}, {20, 777}, {30, 30}});
    CHECK(std::accumulate(shares.begin(), shares.end(), uint64_t{0}) <= budget);
    CHECK(shares[0] >= 10 && shares[1] >= 20 && shares[2] == 30);
  }
}

// As programs do that load two models at a time, each in a thread: one turns out to be of another file.
TEST(AModelGivesItsCacheUpWhileAnotherJoins) {
  CacheAmount amount;
  amount.kind = CacheAmount::Kind::kShare;
  amount.share = 0.5;
  ProcessBudget budget(amount);
  AttachOptions attach;
  attach.policy = "lru";
  constexpr int kTimes = 20;
  testing::SmallMoe one{testing::SmallMoe::Shape()}, another{testing::SmallMoe::Shape()};
  int n_joined = 0;
  std::thread other([&] {
    for (int i = 0; i < kTimes; i++) {
      n_joined += budget.Join(another.model.get(), attach).ok() ? 1 : 0;
      budget.Detach(another.model.get());
    }
  });
  for (int i = 0; i < kTimes; i++) {
    CHECK_OK(budget.Join(one.model.get(), attach));
    CHECK(budget.n_bytes() > 0);
    budget.Detach(one.model.get());
  }
  other.join();
  CHECK_EQ(n_joined, kTimes);
  CHECK_EQ(budget.n_bytes(), 0u);
}

}  // namespace
}  // namespace remoe::plugin

REMOE_TEST_MAIN()

#include "cache/recent_use.h"

#include "testing/check.h"

namespace remoe {
namespace {

TEST(EachConversationGoesOnWhereItWas) {
  RecentUses uses;
  uses.now().idle = {1};
  uses.SwitchTo(3);
  CHECK_EQ(uses.now().idle[0], 1);  // one that is new begins with what there was
  uses.now().idle = {2};
  uses.SwitchTo(kNoConversation);
  CHECK_EQ(uses.now().idle[0], 1);
  uses.SwitchTo(3);
  uses.SwitchTo(3);
  CHECK_EQ(uses.now().idle[0], 2);
}

TEST(WhoPausedLongestIsForgotten) {
  RecentUses uses;
  const int n = static_cast<int>(RecentUses::kMost) + 2;
  uses.now().idle = {-1};
  for (int i = 0; i < n; i++) {
    uses.SwitchTo(i);
    uses.now().idle = {static_cast<float>(i)};
  }
  uses.SwitchTo(1);
  CHECK_EQ(uses.now().idle[0], 1);
  uses.SwitchTo(0);  // forgotten: begins with the memory of the step before
  CHECK_EQ(uses.now().idle[0], 1);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

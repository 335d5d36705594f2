// What a dial decides, in numbers that can be checked by hand.
#include "device/compute/dial.h"

#include <cmath>

#include "testing/check.h"

namespace remoe {
namespace {

// Eight experts with these values, of which the first four are chosen, the weights being the values.
struct Token {
  std::vector<float> values = {0.4f, 0.2f, 0.1f, 0.08f, 0.07f, 0.06f, 0.05f, 0.04f};
  std::vector<float> scores = values;
  std::vector<uint8_t> present = std::vector<uint8_t>(8);
  std::vector<int32_t> ids = {0, 1, 2, 3};
  std::vector<uint8_t> skipped = std::vector<uint8_t>(4);
  std::vector<uint8_t> coarse = std::vector<uint8_t>(4);
  bool logits = false, may_be_coarse = true;

  bool Choose(Dial* dial) {
    std::vector<float> weights;
    for (const int32_t id : ids) weights.push_back(logits ? std::exp(values[id]) : values[id]);
    Dial::Said said{scores.data(), values.data(), logits, weights.data()};
    return dial->Choose(said, present, may_be_coarse, 4, ids.data(), skipped.data(), coarse.data());
  }
};
using Ids = std::vector<int32_t>;
using Marks = std::vector<uint8_t>;

TEST(NothingChangesWhereNothingIsToBeRead) {
  Dial dial({0.9f, 0.9f, 0});
  Token token;
  token.present.assign(8, 1);
  CHECK(!token.Choose(&dial));
  CHECK(token.ids == Ids({0, 1, 2, 3}) && token.skipped == Marks(4));
  CHECK_EQ(dial.weighed.load(), 4u);
}

TEST(AMissingExpertIsSwappedForTheBestResidentThatIsNear) {
  Dial dial({0.25f, 0, 0});
  Token token;
  token.present[4] = token.present[6] = 1;
  CHECK(token.Choose(&dial));
  // 0.07 is near to 0.08 and not to 0.1, for which 0.05 is left, which is not near either.
  CHECK(token.ids == Ids({0, 1, 2, 4}) && token.skipped == Marks(4));
  CHECK_EQ(dial.swapped.load(), 1u);
}

TEST(ExpertsThatTheRouterMaskedAreNeverTaken) {
  Dial dial({0.25f, 0, 0});
  Token token;
  token.present[4] = 1;
  token.scores[4] = -INFINITY;
  CHECK(!token.Choose(&dial));
}

TEST(LogitsAreComparedByTheirDifference) {
  Token token;
  token.logits = true;
  token.values = token.scores = {3, 2, 1, -1, -1.2f, -9, -9, -9};
  token.present[4] = 1;
  Dial near({0.19f, 0, 0}), far({0.18f, 0, 0});  // exp(-0.2) is 0.819
  Token other = token;
  CHECK(token.Choose(&near) && token.ids[3] == 4);
  CHECK(!other.Choose(&far));
}

TEST(ColdExpertsOfLittleWeightAreSkippedAndResidentsStay) {
  Dial dial({0, 0.2f, 0});
  Token token;  // shares: 0.51, 0.26, 0.13, 0.10
  token.present[3] = 1;
  CHECK(token.Choose(&dial));
  CHECK(token.skipped == Marks({0, 0, 1, 0}));
  CHECK(token.ids == Ids({0, 1, 0, 3}));  // a skipped one stands for the strongest
  CHECK_EQ(dial.skipped_cold.load(), 1u);
}

TEST(SmallExpertsAreSkippedWhoeverIsResident) {
  Dial dial({0, 0, 0.2f});
  for (const bool present : {false, true}) {
    Token token;
    token.present.assign(8, present);
    CHECK(token.Choose(&dial));
    CHECK(token.skipped == Marks({0, 0, 1, 1}));
  }
  CHECK_EQ(dial.skipped_small.load(), 4u);
}

TEST(TheStrongestStaysAtAnySetting) {
  Dial dial({0.99f, 0.99f, 0.99f});
  Token token;
  token.values = token.scores = {0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f};
  token.present.assign(8, 1);
  token.present[0] = 0;
  CHECK(token.Choose(&dial));
  CHECK(token.skipped == Marks({0, 1, 1, 1}) && token.ids == Ids({0, 0, 0, 0}));
}

TEST(WeightsThatAreNoSharesAreLeftAlone) {
  Dial dial({0, 0, 0.5f});
  Token token;
  token.values[1] = NAN;
  CHECK(!token.Choose(&dial));
}

TEST(ExpertsBelowTheShareAreReadInTheCoarseFormAndCoarseResidentsDo) {
  Dial dial({0, 0, 0, 0.2f});
  Token token;  // shares: 0.51, 0.26, 0.13, 0.10
  token.present = {Dial::kAbsent, Dial::kCoarse, Dial::kCoarse, Dial::kAbsent, 0, 0, 0, 0};
  CHECK(!token.Choose(&dial));  // the router's choice and weights stay
  CHECK(token.coarse == Marks({0, 0, 1, 1}));
  token.present[2] = token.present[3] = Dial::kWhole;
  CHECK(!token.Choose(&dial));
  CHECK(token.coarse == Marks(4));  // what is there whole is used
  CHECK_EQ(dial.coarse.load(), 2u);
}

TEST(TheStrongestIsReadInTheCoarseFormWhereItsShareIsSmallToo) {
  Dial dial({0, 0, 0, 0.9f});
  Token token;
  CHECK(!token.Choose(&dial));
  CHECK(token.coarse == Marks({1, 1, 1, 1}));
}

TEST(ACoarseResidentCountsAsMissingWhereBetterIsNeeded) {
  Dial dial({0, 0.2f, 0, 0.12f});
  Token token;
  token.present = {1, 1, Dial::kCoarse, Dial::kCoarse, 0, 0, 0, 0};
  CHECK(token.Choose(&dial));
  CHECK(token.skipped == Marks({0, 0, 1, 0}) && token.coarse == Marks({0, 0, 0, 1}));
  Token together = Token();
  together.present = {1, 1, 1, Dial::kCoarse, 0, 0, 0, 0};
  together.may_be_coarse = false;
  CHECK(together.Choose(&dial));
  CHECK(together.skipped == Marks({0, 0, 0, 1}) && together.coarse == Marks(4));
}

TEST(ASwapTakesACoarseResidentOnlyWhereThatWillDo) {
  for (const float below : {0.05f, 0.15f}) {
    Dial dial({0.25f, 0, 0, below});
    Token token;
    token.present = {1, 1, 1, 0, Dial::kCoarse, 0, 0, 0};
    CHECK_EQ(token.Choose(&dial), below > 0.1f);
    CHECK_EQ(token.ids[3], below > 0.1f ? 4 : 3);
    CHECK_EQ(token.coarse[3], below > 0.1f ? 1 : 0);
  }
}

TEST(SettingsAreSharesBelowOne) {
  CHECK(DialSettings({0, 0.5f, 0.99f}).valid());
  CHECK(!DialSettings({1, 0, 0}).valid() && !DialSettings({0, -0.1f, 0}).valid());
  CHECK(!DialSettings({0, 0, NAN}).valid() && !DialSettings({0, 0, 0, 1}).valid());
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// What users write for an amount of memory, and what is none.
#include "plugin/cache_amount.h"

#include "testing/check.h"

namespace remoe::plugin {
namespace {

uint64_t Bytes(const std::string& text) {
  const Result<CacheAmount> amount = CacheAmount::Parse(text);
  CHECK_OK(amount.status());
  CHECK(amount.value().kind == CacheAmount::Kind::kBytes);
  return amount.value().n_bytes;
}

TEST(SizesAreWrittenAsEverywhere) {
  CHECK_EQ(Bytes("1048576"), 1048576u);
  CHECK_EQ(Bytes("1500MiB"), 1500ull << 20);
  CHECK_EQ(Bytes(" 1.5 G "), 3ull << 29);
  CHECK_EQ(Bytes("800mb"), 800'000'000u);
  CHECK_EQ(Bytes("2kB"), 2000u);
  CHECK_EQ(Bytes("99999999999T"), 1ull << 62);
}

TEST(SharesAndAuto) {
  const Result<CacheAmount> share = CacheAmount::Parse("30%");
  CHECK_OK(share.status());
  CHECK(share.value().kind == CacheAmount::Kind::kShare && share.value().share == 0.3);
  CHECK(CacheAmount::Parse("Auto").value().kind == CacheAmount::Kind::kAuto);
}

TEST(WhatIsNoAmountIsRefused) {
  for (const char* text : {"", "plenty", "-1G", "0%", "101%", "1.2.3M", "5X", "MiB", "1e6", "%"}) {
    CHECK(CacheAmount::Parse(text).status().code() == Code::kInvalidArgument);
  }
}

}  // namespace
}  // namespace remoe::plugin

REMOE_TEST_MAIN()

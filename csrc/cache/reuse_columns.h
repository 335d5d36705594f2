// kReuseColumns: the columns of the reuse-biased policy by name, and what they weigh for a model
// that has no profile.
//
// The list itself is reuse_columns.def, a row per column; nothing else repeats it. Constant data;
// safe to share between threads.
#ifndef REMOE_CACHE_REUSE_COLUMNS_H_
#define REMOE_CACHE_REUSE_COLUMNS_H_

#include "cache/profile.h"

namespace remoe {

// Cache sizes that the default weights were fitted for, as shares of all experts.
#define REMOE_SHARES(...) constexpr float kReuseShares[] = {__VA_ARGS__};
#include "cache/reuse_columns.def"

constexpr int kReuseShareCount = sizeof kReuseShares / sizeof kReuseShares[0];

struct ReuseColumn {
  const char* name;
  float weights[kReuseShareCount];
  const char* meaning;
};

constexpr ReuseColumn kReuseColumns[] = {
#define REMOE_COLUMN(identifier, name, small, middle, large, meaning) \
  {name, {small, middle, large}, meaning},
#include "cache/reuse_columns.def"
};

constexpr int kReuseColumnCount = sizeof kReuseColumns / sizeof kReuseColumns[0];

// The weights of a model without a profile: no links, weights only.
Profile DefaultProfile();

}  // namespace remoe

#endif  // REMOE_CACHE_REUSE_COLUMNS_H_

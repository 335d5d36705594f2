#include "cache/reuse_columns.h"

namespace remoe {

Profile DefaultProfile() {
  Profile profile;
  profile.n_weights = kReuseColumnCount;
  profile.shares.assign(kReuseShares, kReuseShares + kReuseShareCount);
  for (int share = 0; share < kReuseShareCount; share++) {
    for (const ReuseColumn& column : kReuseColumns) {
      profile.weights.push_back(column.weights[share]);
    }
  }
  return profile;
}

}  // namespace remoe

// The weights of the reuse-biased policy for a model that has no profile: no links, weights only.
//
// Fitted to routing traces by `remoe-edge profile`; docs/policies.md has the command and the figures.
// Constant data.
#ifndef REMOE_CACHE_REUSE_DEFAULTS_H_
#define REMOE_CACHE_REUSE_DEFAULTS_H_

#include "cache/profile.h"

namespace remoe {

inline Profile DefaultProfile() {
  Profile profile;
  profile.n_weights = 27;
  profile.shares = {0.25f};
  profile.weights.assign(27, 0.0f);
  profile.weights[13] = -1;
  return profile;
}

}  // namespace remoe

#endif  // REMOE_CACHE_REUSE_DEFAULTS_H_

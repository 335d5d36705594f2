// The weights of the reuse-biased policy for a model that has no profile: no links, weights only.
//
// Fitted to the routing of Qwen3-30B-A3B (48 layers of 128 experts, top-8) on 8000 tokens of code and
// 8000 of general text by `remoe-edge profile CODE GENERAL --no-links`; docs/policies.md has the figures.
// They carry over as far as use itself does: nothing in them names a layer or an expert. Weights of the
// router's probabilities are 0, since those traces have none. Constant data.
#ifndef REMOE_CACHE_REUSE_DEFAULTS_H_
#define REMOE_CACHE_REUSE_DEFAULTS_H_

#include "cache/profile.h"

namespace remoe {

inline Profile DefaultProfile() {
  Profile profile;
  profile.shares = {0.1f, 0.25f, 0.5f};
  profile.weights = {
      // 10%
      -0.02547f, 0.03847f, 1.032f, 0.471f, 1.726f, 0.3074f, 0.2026f, -0.0256f, 0.008956f,
      0.0468f, 0.09104f, 0.03214f, 0.4547f, -0.01162f, -0.2888f, 0, 0, 0, 0, 0, 1.105f, 0.4512f,
      -0.6581f, 0, 0, 0, 0,
      // 25%
      0.003913f, 0.178f, 0.3625f, 0.6931f, 1.639f, 0.9014f, 0.1992f, -0.01697f, 0.0107f,
      0.04804f, 0.09125f, 0.03215f, 0.4718f, -0.008099f, -0.2953f, 0, 0, 0, 0, 0, 0.6508f,
      0.6739f, -0.5502f, 0, 0, 0, 0,
      // 50%
      -0.0636f, 0.3386f, 0.07576f, 0.455f, 0.3839f, 3.517f, 2.973f, -0.007595f, 0.01362f,
      0.06023f, 0.06531f, 0.005872f, 0.3983f, -0.04583f, -0.2657f, 0, 0, 0, 0, 0, 0.2325f,
      0.5471f, 0.03252f, 0, 0, 0, 0,
  };
  profile.n_weights = static_cast<int>(profile.weights.size() / profile.shares.size());
  return profile;
}

}  // namespace remoe

#endif  // REMOE_CACHE_REUSE_DEFAULTS_H_

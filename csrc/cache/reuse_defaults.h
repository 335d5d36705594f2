// The weights of the reuse-biased policy for a model that has no profile: no links, weights only.
//
// Fitted and searched by tools/fit_defaults.py on the routing of two models, each counting as much:
// Qwen3-30B-A3B (48 layers of 128 experts, top-8; 8000 tokens of code, 8000 of general text), and
// the model in models/ (9 of 64, top-6; training text of seven domains); docs/policies.md has the
// figures. They carry over as far as use itself does: nothing in them names a layer or an expert.
// Weights of the router's probabilities are 0: routers' scores do not compare. Constant data.
#ifndef REMOE_CACHE_REUSE_DEFAULTS_H_
#define REMOE_CACHE_REUSE_DEFAULTS_H_

#include "cache/profile.h"

namespace remoe {

inline Profile DefaultProfile() {
  Profile profile;
  profile.shares = {0.1f, 0.25f, 0.5f};
  profile.weights = {
      // 10%
      0.1603f,
      0.04639f,
      0.1241f,
      0.4924f,
      1.434f,
      1.194f,
      -2.348f,
      0.01444f,
      0.01649f,
      0.04494f,
      0.04047f,
      0.11f,
      0.6134f,
      0.08858f,
      -0.5494f,
      0,
      0,
      0,
      0,
      0,
      1.697f,
      0.5294f,
      -1.191f,
      0,
      0,
      0,
      0,
      // 25%
      0.1555f,
      -0.04643f,
      -0.09f,
      1.009f,
      2.588f,
      1.146f,
      -1.093f,
      -0.01253f,
      0.02496f,
      0.04482f,
      0.04109f,
      0.1379f,
      0.5105f,
      0.07634f,
      -0.5106f,
      0,
      0,
      0,
      0,
      0,
      0.933f,
      0.6937f,
      -0.827f,
      0,
      0,
      0,
      0,
      // 50%
      0.1256f,
      0.6534f,
      -0.6729f,
      0.7359f,
      1.33f,
      2.881f,
      -0.09416f,
      -0.001342f,
      -0.01441f,
      0.06211f,
      0.09223f,
      0.05103f,
      0.6953f,
      0.1027f,
      -0.4973f,
      0,
      0,
      0,
      0,
      0,
      0.6153f,
      0.8408f,
      -0.05372f,
      0,
      0,
      0,
      0,
  };
  profile.n_weights = static_cast<int>(profile.weights.size() / profile.shares.size());
  return profile;
}

}  // namespace remoe

#endif  // REMOE_CACHE_REUSE_DEFAULTS_H_

// The weights of the reuse-biased policy for a model that has no profile: no links, weights only.
//
// Fitted to the routing of Qwen3-30B-A3B (48 layers of 128 experts, top-8) on 8000 tokens of code
// and 8000 of general text by `remoe-edge profile CODE GENERAL --no-links`; docs/policies.md has
// the figures. They carry over as far as use itself does: nothing in them names a layer or an
// expert. Weights of the router's probabilities are 0, since those traces have none. Constant data.
#ifndef REMOE_CACHE_REUSE_DEFAULTS_H_
#define REMOE_CACHE_REUSE_DEFAULTS_H_

#include "cache/profile.h"

namespace remoe {

inline Profile DefaultProfile() {
  Profile profile;
  profile.shares = {0.1f, 0.25f, 0.5f};
  profile.weights = {
      // 10%
      0.07285f,
      -0.1655f,
      0.8584f,
      0.6981f,
      1.356f,
      1.259f,
      -0.9941f,
      -0.03193f,
      -0.003328f,
      0.05358f,
      0.08568f,
      -0.03095f,
      0.5965f,
      -0.0951f,
      -0.251f,
      0,
      0,
      0,
      0,
      0,
      1.209f,
      0.5418f,
      -0.4568f,
      0,
      0,
      0,
      0,
      // 25%
      0.05535f,
      -0.08063f,
      0.4199f,
      0.6576f,
      1.458f,
      1.602f,
      -0.8598f,
      -0.01209f,
      -0.01569f,
      0.05364f,
      0.1024f,
      -0.0558f,
      0.6489f,
      -0.09556f,
      -0.2451f,
      0,
      0,
      0,
      0,
      0,
      0.7228f,
      0.7642f,
      -0.2809f,
      0,
      0,
      0,
      0,
      // 50%
      0.1766f,
      -0.6057f,
      0.9688f,
      0.1719f,
      0.8266f,
      3.553f,
      -1.019f,
      -0.01135f,
      -0.006133f,
      0.05371f,
      0.09736f,
      -0.1049f,
      0.6601f,
      -0.1181f,
      -0.2475f,
      0,
      0,
      0,
      0,
      0,
      0.4453f,
      0.728f,
      0.1449f,
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

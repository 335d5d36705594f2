// Profile: what fitting to traces has learned of a model: the weights of the reuse-biased policy
// and, per layer, how one expert's use bears on another's next.
//
// A profile is bytes in and bytes out; files are the caller's. Immutable once parsed; safe to share
// between threads. Little-endian:
//
//     0  char[8]   "REMOEPRF"
//     8  u32       version, 1
//    12  u32       header_bytes: where the numbers begin, a multiple of 8
//    16  u32       n_layers   } both 0 where the profile is for any model;
//    20  u32       n_experts  } it then has neither links nor uses
//    24  u32       n_weights, 0 where n_shares is
//    28  u32       n_shares, 0 where the weights are the program's own
//    32  u32       n_contexts, 0 without links
//    36  u32       meta_bytes
//    40  char[64]  fingerprint of the model, NUL-padded ASCII
//   104  u64       size of the whole
//   112  u64       FNV-1a of all bytes, itself counted as zeros
//   120  u32       n_uses: 0, or n_layers * n_experts
//   124  u32       0
//   128  char[meta_bytes], a JSON object; zeros up to header_bytes
//        f32       shares[n_shares], rising
//        f32       weights[n_shares][n_weights]
//        f32       scales[n_layers][n_contexts]
//        f32       uses[n_uses]
//        i8        links[n_layers][n_contexts][n_experts][n_experts]
#ifndef REMOE_CACHE_PROFILE_H_
#define REMOE_CACHE_PROFILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

class Profile {
 public:
  // Damage is kCorrupt. `name` is for messages. Nothing is allocated before every count agrees with
  // the others and with `size`.
  static Result<Profile> Parse(const uint8_t* data, size_t size, const std::string& name);
  // Whether the sizes agree and every number is one: kCorrupt names the first that is not.
  Status Check() const;
  // RETURNS: bytes that Parse() takes. REQUIRES: Check() is ok.
  std::vector<uint8_t> Serialize() const;

  int n_layers = 0;
  int n_experts = 0;
  int n_weights = 0;
  int n_contexts = 0;       // 0: no links; n_layers and n_experts may then be 0, for any model
  std::string fingerprint;  // at most 64 bytes
  std::string meta = "{}";
  std::vector<float> shares;   // cache sizes that weights were fitted for, as shares of all experts
  std::vector<float> weights;  // [shares][n_weights]
  std::vector<float> scales;   // [n_layers][n_contexts]: what one step of a link weighs
  std::vector<float> uses;     // [n_layers][n_experts] of past runs, fading; or none
  std::vector<int8_t> links;   // [n_layers][n_contexts][from][to]

  // Weights for a cache of `share` of all experts: interpolated in log(share), constant outside.
  // REQUIRES: there are shares.
  std::vector<float> WeightsFor(double share) const;
};

}  // namespace remoe

#endif  // REMOE_CACHE_PROFILE_H_

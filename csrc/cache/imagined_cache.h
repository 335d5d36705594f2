// ImaginedCache: what a cache of that many slots would miss if its victims were chosen by these
// scores. It holds who would be resident, and nothing else: neither slots nor bytes.
//
// One of a policy's ways to judge itself; an event costs a few hundred nanoseconds and allocates
// nothing. Not thread-safe.
#ifndef REMOE_CACHE_IMAGINED_CACHE_H_
#define REMOE_CACHE_IMAGINED_CACHE_H_

#include <cstdint>
#include <vector>

#include "cache/resident_ranks.h"

namespace remoe {

class ImaginedCache {
 public:
  explicit ImaginedCache(const Geometry& geometry)
      : n_layers_(geometry.n_layers),
        n_experts_(geometry.n_experts),
        ranks_(geometry.n_layers, geometry.n_experts) {}

  // Has n_slots from now on, and the residents that may leave the real cache.
  void Copy(const ResidentRanks& real, int n_slots);
  // New scores [stride] of a layer's experts.
  void Score(int layer, const float* score) { ranks_.Score(layer, score); }
  // An event needs these experts at once. RETURNS: how many were missing. REQUIRES: n <= n_slots.
  int Run(int layer, const uint16_t* experts, int n);

 private:
  const int n_layers_, n_experts_;
  ResidentRanks ranks_;  // who is offered is resident, but for an event's own experts
  int n_slots_ = 0;
  int resident_ = 0;
};

}  // namespace remoe

#endif  // REMOE_CACHE_IMAGINED_CACHE_H_

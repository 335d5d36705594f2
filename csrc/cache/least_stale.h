// LeastStalePolicy: experts left over from earlier steps leave first, and among them those of
// layers that this step has already passed: they cannot be needed before the next step.
//
// An expert is stale when its last use lies in an earlier step than the present one. Victims, in
// turn:
//   1. stale experts of the present layer and the layers before it, longest unused first;
//   2. stale experts of layers still to come, longest unused first;
//   3. experts used in this step, from the layer passed last, whose turn is farthest off: this keeps
//      hits coming where the cache is smaller than one token's working set and LRU has none.
// Source: the idea of "least stale" eviction in SpecMD (2026); the order inside each class is ours.
// Heads of n_layers lists are compared per victim; no allocation. Not thread-safe: as its
// cache, called from one thread.
#ifndef REMOE_CACHE_LEAST_STALE_H_
#define REMOE_CACHE_LEAST_STALE_H_

#include <vector>

#include "cache/policy.h"

namespace remoe {

class LeastStalePolicy : public Policy {
 public:
  explicit LeastStalePolicy(const Geometry& geometry);

  const char* name() const override { return "least-stale"; }
  void OnEvent(const Event& event) override;
  void OnHit(ExpertId id) override { Unlink(id); }
  void OnEvict(ExpertId id) override { Unlink(id); }
  void OnEventEnd(const Event& event) override;
  ExpertId Victim(const EvictableList& evictable) override;

 private:
  void Unlink(ExpertId id);

  const int n_layers_;
  const int n_experts_;
  // One list per layer, threaded through shared arrays: node total + layer is its sentinel.
  std::vector<ExpertId> next_, prev_;
  std::vector<uint64_t> used_;  // event number of the last use
  uint64_t now_ = 0;            // events so far
  uint64_t step_began_ = 0;     // number of the step's first event
  int64_t step_ = INT64_MIN;
  int layer_ = 0;
};

}  // namespace remoe

#endif  // REMOE_CACHE_LEAST_STALE_H_

// LfuPolicy: the expert used in the fewest events leaves first; equal counts by recency.
//
// Counts are of the whole run and outlive eviction ("perfect" LFU), so that an expert that comes
// back keeps its standing. Old favourites therefore stay long after their text has passed: see
// lfru. Source: textbook; counts kept by an indexed heap. Not thread-safe: as its
// cache, called from one thread.
#ifndef REMOE_CACHE_LFU_H_
#define REMOE_CACHE_LFU_H_

#include <vector>

#include "cache/policy.h"
#include "cache/victim_heap.h"

namespace remoe {

class LfuPolicy : public Policy {
 public:
  explicit LfuPolicy(const Geometry& geometry)
      : n_experts_(geometry.n_experts), uses_(geometry.total(), 0), heap_(geometry.total()) {}

  const char* name() const override { return "lfu"; }
  void OnHit(ExpertId id) override { heap_.Remove(id); }
  void OnEvict(ExpertId id) override { heap_.Remove(id); }
  void OnEventEnd(const Event& event) override {
    for (int i = 0; i < event.n; i++) {
      const ExpertId id = static_cast<ExpertId>(event.layer) * n_experts_ + event.experts[i];
      heap_.Push(id, static_cast<double>(++uses_[id]));
    }
  }
  ExpertId Victim(const EvictableList&) override { return heap_.top(); }

 private:
  int n_experts_;
  std::vector<uint64_t> uses_;
  VictimHeap heap_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_LFU_H_

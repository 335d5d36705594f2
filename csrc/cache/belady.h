// BeladyPolicy: the oracle. The expert whose layer needs it again last leaves first.
//
// The replay tells each event's next uses (Event::next_use); the live engine cannot. For events
// that need all their experts at once, all of one size, in slots of one size, evicting the farthest
// next event among the unpinned gives the fewest misses that any demand-driven policy can reach:
// two experts with the same next event are both needed by it, so either choice costs the same. It
// is no bound for policies that read ahead of demand in idle time, since those change what a miss
// costs, nor for caches that split events. Source: Belady 1966, Mattson et al. 1970. Not
// thread-safe: as its cache, called from one thread.
#ifndef REMOE_CACHE_BELADY_H_
#define REMOE_CACHE_BELADY_H_

#include "cache/policy.h"
#include "cache/victim_heap.h"

namespace remoe {

class BeladyPolicy : public Policy {
 public:
  explicit BeladyPolicy(const Geometry& geometry)
      : n_experts_(geometry.n_experts), heap_(geometry.total()) {}

  const char* name() const override { return "belady"; }
  void OnHit(ExpertId id) override { heap_.Remove(id); }
  void OnEvict(ExpertId id) override { heap_.Remove(id); }
  void OnEventEnd(const Event& event) override {
    for (int i = 0; i < event.n; i++) {
      const ExpertId id = static_cast<ExpertId>(event.layer) * n_experts_ + event.experts[i];
      // Unknown (not a replay) counts as never: the oracle then is an odd LRU, not a crash.
      const int64_t next = event.next_use != nullptr ? event.next_use[i] : kNever;
      heap_.Push(id, -static_cast<double>(next));
    }
  }
  ExpertId Victim(const EvictableList&) override { return heap_.top(); }

 private:
  int n_experts_;
  VictimHeap heap_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_BELADY_H_

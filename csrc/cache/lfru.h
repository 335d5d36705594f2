// LfruPolicy: least frequently *recently* used. Every use counts 1 and fades by 5 % with each event
// of its layer; the expert with the smallest faded count leaves first; equal counts by recency.
//
// All counts fade alike, so their order only changes when an expert is used: the rank kept is
// log2(count) + t · log2(1 / 0.95), t = events of the layer so far, which stands still between
// uses. Source: LFU with exponential ageing, as in LFRU caches; 0.95 per token is what served best
// on routing traces of a 48-layer, 128-expert model. Not thread-safe: as
// its cache, called from one thread.
#ifndef REMOE_CACHE_LFRU_H_
#define REMOE_CACHE_LFRU_H_

#include <cmath>
#include <vector>

#include "cache/policy.h"
#include "cache/victim_heap.h"

namespace remoe {

class LfruPolicy : public Policy {
 public:
  explicit LfruPolicy(const Geometry& geometry)
      : n_experts_(geometry.n_experts),
        time_(geometry.n_layers, 0),
        used_at_(geometry.total(), 0),
        count_(geometry.total(), 0),
        heap_(geometry.total()) {}

  const char* name() const override { return "lfru"; }
  void OnHit(ExpertId id) override { heap_.Remove(id); }
  void OnEvict(ExpertId id) override { heap_.Remove(id); }
  void OnEventEnd(const Event& event) override {
    const int64_t now = ++time_[event.layer];
    for (int i = 0; i < event.n; i++) {
      const ExpertId id = static_cast<ExpertId>(event.layer) * n_experts_ + event.experts[i];
      count_[id] = 1 + count_[id] * std::pow(kFade, static_cast<double>(now - used_at_[id]));
      used_at_[id] = now;
      heap_.Push(id, std::log2(count_[id]) - static_cast<double>(now) * std::log2(kFade));
    }
  }
  ExpertId Victim(const EvictableList&) override { return heap_.top(); }

 private:
  static constexpr double kFade = 0.95;
  int n_experts_;
  std::vector<int64_t> time_;     // events of each layer
  std::vector<int64_t> used_at_;  // in its layer's time
  std::vector<double> count_;     // as it was at used_at_
  VictimHeap heap_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_LFRU_H_

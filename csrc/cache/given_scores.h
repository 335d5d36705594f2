// GivenScoresPolicy: evicts by scores that somebody else made, a row for each event of a log.
//
// For replays: what a slow model of routing would save is counted by the engine's own cache. Reads the
// caller's rows [n_events][n_experts], in the order of the events that are not continued. Not
// thread-safe.
#ifndef REMOE_CACHE_GIVEN_SCORES_H_
#define REMOE_CACHE_GIVEN_SCORES_H_

#include <algorithm>
#include <vector>

#include "cache/resident_ranks.h"

namespace remoe {

class GivenScoresPolicy : public Policy {
 public:
  GivenScoresPolicy(const Geometry& geometry, const float* scores)
      : n_experts_(geometry.n_experts),
        scores_(scores),
        ranks_(geometry.n_layers, geometry.n_experts),
        row_(ResidentRanks::Stride(geometry.n_experts), 0) {}
  const char* name() const override { return "given"; }
  void OnEvent(const Event& event) override {
    std::copy(scores_, scores_ + n_experts_, row_.begin());
    ranks_.Score(event.layer, row_.data());
    scores_ += n_experts_;
  }
  void OnHit(ExpertId id) override { ranks_.Withdraw(id); }
  void OnEvict(ExpertId id) override { OnHit(id); }
  void OnEventEnd(const Event& event) override {
    for (int i = 0; i < event.n; i++) ranks_.Offer(event.layer, event.experts[i]);
  }
  ExpertId Victim(const EvictableList& evictable) override { return ranks_.Least(); }

 private:
  const int n_experts_;
  const float* scores_;
  ResidentRanks ranks_;
  std::vector<float> row_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_GIVEN_SCORES_H_

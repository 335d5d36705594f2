// ArcPolicy: adaptive replacement. Experts seen once recently (t1) and more often (t2) are kept
// apart, with the ids of those just evicted from each remembered (b1, b2); a miss on a remembered
// id shifts the share of slots aimed at for t1 towards the list that lost it.
//
// An event's experts enter together, in the event's order; pinned ones stand at the young end of
// their list and are stepped over when a victim is looked for, at most one event's worth. Source:
// Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003; written from
// the paper's description. Not thread-safe: as its cache, called from one thread.
#ifndef REMOE_CACHE_ARC_H_
#define REMOE_CACHE_ARC_H_

#include "cache/policy.h"

namespace remoe {

class ArcPolicy : public Policy {
 public:
  explicit ArcPolicy(const Geometry& geometry);

  const char* name() const override { return "arc"; }
  void OnHit(ExpertId id) override;
  void OnMiss(ExpertId id) override;
  void OnInsert(ExpertId id) override;
  void OnEvict(ExpertId id) override;
  void OnResize(int n_slots) override;
  ExpertId Victim(const EvictableList& evictable) override;

 private:
  enum class Coming { kNew, kOnceBefore, kOftenBefore };

  void TrimGhosts();

  int n_slots_;
  EvictableList t1_, t2_;  // resident, oldest first
  EvictableList b1_, b2_;  // evicted from t1_, t2_, oldest first
  int target_ = 0;         // slots aimed at for t1_
  Coming coming_ = Coming::kNew;
};

}  // namespace remoe

#endif  // REMOE_CACHE_ARC_H_

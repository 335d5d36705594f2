#include "cache/arc.h"

#include <algorithm>

namespace remoe {

namespace {

// kNoExpert when every member is pinned.
ExpertId OldestUnpinned(const EvictableList& list, const EvictableList& evictable) {
  if (list.empty()) return kNoExpert;
  for (ExpertId id = list.front(); id != kNoExpert; id = list.Next(id)) {
    if (evictable.Contains(id)) return id;
  }
  return kNoExpert;
}

}  // namespace

ArcPolicy::ArcPolicy(const Geometry& geometry)
    : n_slots_(geometry.n_slots),
      t1_(geometry.total()),
      t2_(geometry.total()),
      b1_(geometry.total()),
      b2_(geometry.total()) {}

void ArcPolicy::OnHit(ExpertId id) {
  (t1_.Contains(id) ? t1_ : t2_).Remove(id);
  t2_.PushBack(id);
}

void ArcPolicy::OnMiss(ExpertId id) {
  coming_ = Coming::kNew;
  if (b1_.Contains(id)) {
    target_ = std::min(n_slots_, target_ + std::max(1, b2_.size() / b1_.size()));
    b1_.Remove(id);
    coming_ = Coming::kOnceBefore;
  } else if (b2_.Contains(id)) {
    target_ = std::max(0, target_ - std::max(1, b1_.size() / b2_.size()));
    b2_.Remove(id);
    coming_ = Coming::kOftenBefore;
  }
}

ExpertId ArcPolicy::Victim(const EvictableList& evictable) {
  const bool once = !t1_.empty() && (t1_.size() > target_ ||
                                     (coming_ == Coming::kOftenBefore && t1_.size() == target_));
  const ExpertId victim = OldestUnpinned(once ? t1_ : t2_, evictable);
  return victim != kNoExpert ? victim : OldestUnpinned(once ? t2_ : t1_, evictable);
}

void ArcPolicy::OnInsert(ExpertId id) {
  // After a failed read the id may stand among the ghosts again.
  if (b1_.Contains(id)) b1_.Remove(id);
  if (b2_.Contains(id)) b2_.Remove(id);
  (coming_ == Coming::kNew ? t1_ : t2_).PushBack(id);
  TrimGhosts();
}

void ArcPolicy::OnEvict(ExpertId id) {
  const bool once = t1_.Contains(id);
  (once ? t1_ : t2_).Remove(id);
  (once ? b1_ : b2_).PushBack(id);
}

void ArcPolicy::OnResize(int n_slots) {
  n_slots_ = n_slots;
  target_ = std::min(target_, n_slots_);
  TrimGhosts();
}

void ArcPolicy::TrimGhosts() {
  while (!b1_.empty() && t1_.size() + b1_.size() > n_slots_) b1_.Remove(b1_.front());
  while (!b2_.empty() && t1_.size() + t2_.size() + b1_.size() + b2_.size() > 2 * n_slots_) {
    b2_.Remove(b2_.front());
  }
}

}  // namespace remoe

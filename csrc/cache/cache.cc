#include "cache/cache.h"

#include <algorithm>

#include "base/format.h"

namespace remoe {

Cache::Cache(const Geometry& geometry, std::unique_ptr<Policy> policy, int n_spare)
    : geometry_(geometry),
      n_spare_(n_spare),
      policy_(std::move(policy)),
      evictable_(geometry.total()),
      spent_(geometry.total()),
      slot_of_(geometry.total(), kNoSlot),
      ahead_slot_of_(geometry.total(), kNoSlot) {
  free_.reserve(total_slots());
  event_experts_.reserve(geometry.n_experts);
  event_next_use_.reserve(geometry.n_experts);
  Clear();
}

void Cache::Clear() {
  for (int id = 0; id < geometry_.total(); id++) {
    if (slot_of_[id] == kNoSlot) continue;
    Unlist(id);
    policy_->OnEvict(id);
    slot_of_[id] = kNoSlot;
  }
  resident_ = 0;
  free_.clear();
  // Lowest slots first, so that a small working set stays in few pages.
  for (SlotId slot = total_slots() - 1; slot >= 0; slot--) free_.push_back(slot);
}

Status Cache::Begin(const Event& event, std::vector<Placement>* placements) {
  if (event.n > geometry_.n_slots) {
    return Status(Code::kBudgetTooSmall,
                  Format("one step needs %d experts of layer %d at once and the cache has %d slots",
                         event.n, event.layer, geometry_.n_slots));
  }
  if (!Fits(event)) {
    return Status(Code::kBudgetTooSmall,
                  Format("one step needs %d experts of layer %d at once and %d of the cache's %d "
                         "slots are being filled for others",
                         event.n, event.layer, n_ahead_, total_slots()));
  }
  event_ = event;
  event_experts_.assign(event.experts, event.experts + event.n);
  event_.experts = event_experts_.data();
  if (event.next_use != nullptr) {
    event_next_use_.assign(event.next_use, event.next_use + event.n);
    event_.next_use = event_next_use_.data();
  }
  counts_.events++;
  if (!event.continued) policy_->OnEvent(event);
  if (event.phase == Phase::kDecode && spent_by_policy_) {
    while (!spent_.empty()) spent_.Remove(spent_.front());
  }

  // Pin every hit before the first victim is named: an event never evicts what it uses.
  placements->resize(event.n);
  for (int i = 0; i < event.n; i++) {
    const ExpertId id = Id(event.layer, event.experts[i]);
    Placement& placement = (*placements)[i];
    placement = {event.experts[i], slot_of_[id], slot_of_[id] != kNoSlot,
                 ahead_slot_of_[id] != kNoSlot};
    if (!placement.hit) continue;
    Unlist(id);
    policy_->OnHit(id);
    counts_.hits++;
  }
  for (Placement& placement : *placements) {
    if (placement.hit) continue;
    counts_.misses++;
    const ExpertId id = Id(event.layer, placement.expert);
    policy_->OnMiss(id);
    if (resident_ == most_resident() || (!placement.ahead && free_.empty())) Evict(NextVictim());
    if (placement.ahead) {
      placement.slot = ahead_slot_of_[id];
      ahead_slot_of_[id] = kNoSlot;
      n_ahead_--;
    } else {
      placement.slot = free_.back();
      free_.pop_back();
    }
    slot_of_[id] = placement.slot;
    resident_++;
    policy_->OnInsert(id);
  }
  event_.ids = nullptr;  // the caller's, and valid during this call only
  event_.probs = nullptr;
  return Status::Ok();
}

SlotId Cache::TakeFree() {
  // A prompt may read ahead into more slots than the spare ones: the first test alone would take
  // from an empty list then.
  if (free_.empty() || static_cast<int>(free_.size()) + n_ahead_ <= n_spare_) return kNoSlot;
  const SlotId slot = free_.back();
  free_.pop_back();
  return slot;
}

void Cache::Admit(int layer, uint16_t expert, SlotId slot) {
  const ExpertId id = Id(layer, expert);
  policy_->OnMiss(id);
  slot_of_[id] = slot;
  resident_++;
  policy_->OnInsert(id);
  evictable_.PushFront(id);
  Event event;
  event.layer = layer;
  event.step = event_.step;
  event.experts = &expert;
  event.n = 1;
  policy_->OnEventEnd(event);
}

void Cache::LendSpare(bool lend) {
  lent_ = lend;
  while (resident_ > most_resident()) Evict(NextVictim());
}

ExpertId Cache::NextVictim() {
  return spent_.empty() ? policy_->Victim(evictable_) : spent_.front();
}

bool Cache::Fits(const Event& event) const {
  int ahead_of_others = n_ahead_;
  for (int i = 0; i < event.n && n_ahead_ > 0; i++) {
    ahead_of_others -= AheadSlotOf(event.layer, event.experts[i]) != kNoSlot ? 1 : 0;
  }
  return event.n + ahead_of_others <= total_slots();
}

SlotId Cache::BeginAhead(int layer, int expert, bool from_spent, int first_layer, int last_layer) {
  if (free_.empty() && from_spent && !spent_.empty()) {
    for (ExpertId id = spent_.front(); id != kNoExpert; id = spent_.Next(id)) {
      const int its_layer = static_cast<int>(id) / geometry_.n_experts;
      if (first_layer <= its_layer && its_layer <= last_layer) continue;
      Evict(id);
      break;
    }
  }
  if (free_.empty()) return kNoSlot;
  const SlotId slot = free_.back();
  free_.pop_back();
  ahead_slot_of_[Id(layer, expert)] = slot;
  n_ahead_++;
  return slot;
}

void Cache::EndAhead(int layer, int expert) {
  SlotId& slot = ahead_slot_of_[Id(layer, expert)];
  free_.push_back(slot);
  slot = kNoSlot;
  n_ahead_--;
}

void Cache::Unlist(ExpertId id) {
  evictable_.Remove(id);
  if (spent_.Contains(id)) spent_.Remove(id);
}

void Cache::Evict(ExpertId victim) {
  Unlist(victim);
  Release(victim);
  counts_.evictions++;
}

void Cache::Release(ExpertId id) {
  free_.push_back(slot_of_[id]);
  slot_of_[id] = kNoSlot;
  resident_--;
  policy_->OnEvict(id);
}

void Cache::Failed(uint16_t expert) {
  const auto found = std::find(event_experts_.begin(), event_experts_.end(), expert);
  if (found == event_experts_.end()) return;
  if (event_.next_use != nullptr) {
    event_next_use_.erase(event_next_use_.begin() + (found - event_experts_.begin()));
  }
  if (found - event_experts_.begin() < event_.n_spent) event_.n_spent--;
  event_experts_.erase(found);
  event_.n--;
  Release(Id(event_.layer, expert));
}

void Cache::End() {
  if (event_.n_spent > 0) {
    spent_by_policy_ = policy_->LeastFirst(event_.layer, event_experts_.data(), event_.n);
  }
  for (size_t i = 0; i < event_experts_.size(); i++) {
    const ExpertId id = Id(event_.layer, event_experts_[i]);
    evictable_.PushBack(id);
    if (static_cast<int>(i) < event_.n_spent) spent_.PushBack(id);
  }
  policy_->OnEventEnd(event_);
}

}  // namespace remoe

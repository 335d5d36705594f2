#include "cache/cache.h"

#include <algorithm>

#include "base/format.h"

namespace remoe {

Cache::Cache(const Geometry& geometry, std::unique_ptr<Policy> policy, int n_reserved)
    : geometry_(geometry),
      n_reserved_(n_reserved),
      policy_(std::move(policy)),
      evictable_(geometry.total()),
      expendable_(geometry.total()),
      slot_of_(geometry.total(), kNoSlot),
      prefetch_slot_of_(geometry.total(), kNoSlot) {
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
  ListFree();
}

void Cache::ListFree() {
  std::vector<bool> taken(total_slots());
  for (const SlotId slot : slot_of_) {
    if (slot != kNoSlot) taken[slot] = true;
  }
  free_.clear();
  // Lowest slots first, so that a small working set stays in few pages.
  for (SlotId slot = total_slots() - 1; slot >= 0; slot--) {
    if (!taken[slot]) free_.push_back(slot);
  }
}

SlotId Cache::TakeFree(ExpertId id) {
  if (own_slots_) {
    const auto own = std::find(free_.begin(), free_.end(), static_cast<SlotId>(id));
    if (own != free_.end()) std::iter_swap(own, free_.end() - 1);
  }
  const SlotId slot = free_.back();
  free_.pop_back();
  return slot;
}

void Cache::Resize(int n_slots, int n_reserved, std::vector<SlotMove>* moves) {
  moves->clear();
  policy_->OnResize(n_slots);
  geometry_.n_slots = n_slots;
  n_reserved_ = n_reserved;
  while (resident_ > most_resident()) Evict(NextVictim());
  std::vector<ExpertId> outside;
  for (int id = 0; id < geometry_.total(); id++) {
    if (slot_of_[id] == kNoSlot || slot_of_[id] < total_slots()) continue;
    moves->push_back({slot_of_[id], kNoSlot});
    outside.push_back(id);
    slot_of_[id] = kNoSlot;
  }
  ListFree();
  for (size_t i = 0; i < outside.size(); i++) {
    (*moves)[i].to = slot_of_[outside[i]] = free_.back();
    free_.pop_back();
  }
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
                         event.n, event.layer, n_prefetched_, total_slots()));
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
  if (event.phase == Phase::kDecode && expendable_by_policy_) {
    while (!expendable_.empty()) expendable_.Remove(expendable_.front());
  }

  // Pin every hit before the first victim is named: an event never evicts what it uses.
  placements->resize(event.n);
  for (int i = 0; i < event.n; i++) {
    const ExpertId id = Id(event.layer, event.experts[i]);
    Placement& placement = (*placements)[i];
    placement = {event.experts[i], slot_of_[id], slot_of_[id] != kNoSlot,
                 prefetch_slot_of_[id] != kNoSlot};
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
    if (resident_ == most_resident() || (!placement.prefetched && free_.empty()))
      Evict(NextVictim());
    if (placement.prefetched) {
      placement.slot = prefetch_slot_of_[id];
      prefetch_slot_of_[id] = kNoSlot;
      n_prefetched_--;
    } else {
      placement.slot = TakeFree(id);
    }
    slot_of_[id] = placement.slot;
    resident_++;
    policy_->OnInsert(id);
  }
  event_.ids = nullptr;  // the caller's, and valid during this call only
  event_.probs = nullptr;
  return Status::Ok();
}

void Cache::ShareReserved(bool share) {
  reserved_shared_ = share;
  while (resident_ > most_resident()) Evict(NextVictim());
}

ExpertId Cache::NextVictim() {
  return expendable_.empty() ? policy_->Victim(evictable_) : expendable_.front();
}

bool Cache::Fits(const Event& event) const {
  int prefetched_for_others = n_prefetched_;
  for (int i = 0; i < event.n && n_prefetched_ > 0; i++) {
    prefetched_for_others -= PrefetchSlotOf(event.layer, event.experts[i]) != kNoSlot ? 1 : 0;
  }
  return event.n + prefetched_for_others <= total_slots();
}

SlotId Cache::BeginPrefetch(int layer, int expert, const PrefetchSlots& from) {
  if (!from.reserved && resident_ + n_prefetched_ >= geometry_.n_slots) return kNoSlot;
  if (free_.empty() && from.expendable && !expendable_.empty()) {
    for (ExpertId id = expendable_.front(); id != kNoExpert; id = expendable_.Next(id)) {
      const int its_layer = static_cast<int>(id) / geometry_.n_experts;
      if (from.first_layer <= its_layer && its_layer <= from.last_layer) continue;
      Evict(id);
      break;
    }
  }
  if (free_.empty()) return kNoSlot;
  const SlotId slot = TakeFree(Id(layer, expert));
  prefetch_slot_of_[Id(layer, expert)] = slot;
  n_prefetched_++;
  return slot;
}

void Cache::EndPrefetch(int layer, int expert) {
  SlotId& slot = prefetch_slot_of_[Id(layer, expert)];
  free_.push_back(slot);
  slot = kNoSlot;
  n_prefetched_--;
}

void Cache::Admit(int layer, uint16_t expert) {
  const ExpertId id = Id(layer, expert);
  policy_->OnMiss(id);
  slot_of_[id] = prefetch_slot_of_[id];
  prefetch_slot_of_[id] = kNoSlot;
  n_prefetched_--;
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

void Cache::Unlist(ExpertId id) {
  evictable_.Remove(id);
  if (expendable_.Contains(id)) expendable_.Remove(id);
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
  if (found - event_experts_.begin() < event_.n_expendable) event_.n_expendable--;
  event_experts_.erase(found);
  event_.n--;
  Release(Id(event_.layer, expert));
}

void Cache::End() {
  if (event_.n_expendable > 0) {
    expendable_by_policy_ = policy_->LeastFirst(event_.layer, event_experts_.data(), event_.n);
  }
  for (size_t i = 0; i < event_experts_.size(); i++) {
    const ExpertId id = Id(event_.layer, event_experts_[i]);
    evictable_.PushBack(id);
    if (static_cast<int>(i) < event_.n_expendable) expendable_.PushBack(id);
  }
  policy_->OnEventEnd(event_);
}

}  // namespace remoe

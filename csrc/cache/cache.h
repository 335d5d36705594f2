// Cache: which experts are resident, in which slot, and which of them are pinned. Bookkeeping only:
// no memory is touched and nothing is read here, so that the simulator runs what the engine runs.
//
//     Begin()          pins an event's residents (hits) and gives the missing slots: free ones, then
//                      those of the policy's victims. The caller fills them.
//     Failed(), End()  a slot could not be filled; the event is over and unpinned
//     Resize()         more or fewer slots; residents that do not fit are evicted, others may move
//     BeginPrefetch()  a slot before the event. The event that asks makes it a resident (a miss
//                      whose slot may be filled already), Admit() does without an event, and
//                      EndPrefetch() frees it.
//
// An expert is on exactly one of two lists, pinned or evictable, so evicting one in use cannot be
// written. The policy hears of events alone: its residents are the same whether anything is
// prefetched or not, as long as only reserved and free slots are used for it. While nothing is
// going to be prefetched for long, ShareReserved() lets residents have the reserved slots too.
//
// Not synchronised: one event at a time, calls from one thread.
#ifndef REMOE_CACHE_CACHE_H_
#define REMOE_CACHE_CACHE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "cache/policy.h"

namespace remoe {

using SlotId = int32_t;
constexpr SlotId kNoSlot = -1;

struct Placement {
  uint16_t expert = 0;  // within the layer
  SlotId slot = kNoSlot;
  bool hit = false;         // false: the caller must fill the slot
  bool prefetched = false;  // a miss whose slot was taken, and perhaps filled, by BeginPrefetch
};

struct CacheCounts {
  uint64_t events = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t evictions = 0;
};

// Which slots a prefetch may have; free ones beyond the reserved always.
struct PrefetchSlots {
  bool reserved = true;     // the reserved ones too
  bool expendable = false;  // with none free, that of an expendable expert outside these layers
  int first_layer = 0, last_layer = -1;
};

// A resident that changes its slot: the caller copies the bytes.
struct SlotMove {
  SlotId from = kNoSlot;
  SlotId to = kNoSlot;
};

class Cache {
 public:
  // geometry.n_slots are for residents; n_reserved come on top.
  Cache(const Geometry& geometry, std::unique_ptr<Policy> policy, int n_reserved = 0);

  const Geometry& geometry() const { return geometry_; }
  int total_slots() const { return geometry_.n_slots + n_reserved_; }
  const CacheCounts& counts() const { return counts_; }
  // From now on an expert takes the slot of its own number where that is free, so that, with as many
  // slots as experts, a layer's lie in their order.
  void PreferOwnSlots() { own_slots_ = true; }
  bool own_slots() const { return own_slots_; }
  Policy& policy() { return *policy_; }
  const Policy& policy() const { return *policy_; }

  // Pins the event's experts and gives each a slot, in the event's order. Fails with
  // kBudgetTooSmall, changing nothing, when the event has more experts than there are slots.
  // REQUIRES: no event is open; Fits(event).
  Status Begin(const Event& event, std::vector<Placement>* placements);
  // The slot given to a missing expert could not be filled: it is free again.
  // REQUIRES: an event is open and the expert was placed by it with hit == false.
  void Failed(uint16_t expert);
  // Closes the event: its experts may be evicted again, most recent last.
  void End();

  // Has n_slots for residents and n_reserved on top from now on: slots below the sum, whoever was in
  // a higher one is evicted, by the policy's choice of victims, or moves. `moves` are to be carried
  // out in their order. REQUIRES: no event is open, nothing is prefetched, n_slots >= 1.
  void Resize(int n_slots, int n_reserved, std::vector<SlotMove>* moves);

  // Whether residents may fill the reserved slots; taken back, the policy's victims leave them.
  // REQUIRES: no event is open.
  void ShareReserved(bool share);

  // Whether the prefetched experts that are not the event's leave it slots enough.
  bool Fits(const Event& event) const;

  // Takes a slot for an expert that is neither resident nor prefetched. RETURNS: kNoSlot when there
  // is none.
  SlotId BeginPrefetch(int layer, int expert, const PrefetchSlots& from = {});
  // The slot is free again. REQUIRES: the expert is prefetched.
  void EndPrefetch(int layer, int expert);
  // Makes a prefetched expert a resident that no event asked for, the first to leave: neither a hit
  // nor a miss. REQUIRES: no event is open; the expert is prefetched; CanAdmit().
  void Admit(int layer, uint16_t expert);
  bool CanAdmit() const { return resident_ < most_resident(); }
  SlotId PrefetchSlotOf(int layer, int expert) const {
    return prefetch_slot_of_[Id(layer, expert)];
  }
  int n_prefetched() const { return n_prefetched_; }

  SlotId SlotOf(int layer, int expert) const { return slot_of_[Id(layer, expert)]; }
  int resident() const { return resident_; }
  // Takes a resident out. REQUIRES: no event is open; it is resident.
  void Drop(int layer, int expert) { Evict(Id(layer, expert)); }
  // Empties the cache. REQUIRES: no event is open, nothing is prefetched.
  void Clear();

 private:
  ExpertId Id(int layer, int expert) const {
    return static_cast<ExpertId>(layer) * geometry_.n_experts + expert;
  }
  int most_resident() const { return geometry_.n_slots + (reserved_shared_ ? n_reserved_ : 0); }
  ExpertId NextVictim();
  void ListFree();
  SlotId TakeFree(ExpertId id);
  void Release(ExpertId id);
  void Evict(ExpertId victim);
  void Unlist(ExpertId id);

  Geometry geometry_;
  int n_reserved_;
  bool reserved_shared_ = false;
  bool own_slots_ = false;
  std::unique_ptr<Policy> policy_;
  EvictableList evictable_;
  EvictableList expendable_;              // those of evictable_ that leave first
  bool expendable_by_policy_ = false;     // the policy chose them
  std::vector<SlotId> slot_of_;           // by expert id; kNoSlot when not resident
  std::vector<SlotId> prefetch_slot_of_;  // by expert id; kNoSlot when not prefetched
  std::vector<SlotId> free_;
  std::vector<uint16_t> event_experts_;  // pinned by the open event
  std::vector<int64_t> event_next_use_;  // parallel to it, where the event has them
  Event event_;
  int resident_ = 0;
  int n_prefetched_ = 0;
  CacheCounts counts_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_CACHE_H_

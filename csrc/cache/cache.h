// Cache: which experts are resident, in which slot, and which of them are pinned. Bookkeeping only:
// no memory is touched and nothing is read here, so that the simulator runs what the engine runs.
//
// Begin() makes one event's experts resident all at once: residents are hits and get pinned, the
// missing get slots, taken from the free ones and then from the policy's victims. The caller fills
// the missing slots, says Failed() for each that could not be filled, and End() unpins. An expert
// is on exactly one of two lists, pinned or evictable, so evicting one in use cannot be written.
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
  bool hit = false;  // false: the caller must fill the slot
};

struct CacheCounts {
  uint64_t events = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t evictions = 0;
};

class Cache {
 public:
  Cache(const Geometry& geometry, std::unique_ptr<Policy> policy);

  const Geometry& geometry() const { return geometry_; }
  const CacheCounts& counts() const { return counts_; }
  Policy& policy() { return *policy_; }
  const Policy& policy() const { return *policy_; }

  // Pins the event's experts and gives each a slot, in the event's order. Fails with
  // kBudgetTooSmall, changing nothing, when the event has more experts than there are slots.
  // REQUIRES: no event is open.
  Status Begin(const Event& event, std::vector<Placement>* placements);
  // The slot given to a missing expert could not be filled: it is free again.
  // REQUIRES: an event is open and the expert was placed by it with hit == false.
  void Failed(uint16_t expert);
  // Closes the event: its experts may be evicted again, most recent last.
  void End();

  // For experts read before anything asked for them: a free slot to read into, kNoSlot where there
  // is none; Admit() then makes the expert a resident, the first to leave, GiveBack() does not.
  // Neither is a hit or a miss. REQUIRES: no event is open; the expert is not resident.
  SlotId TakeFree();
  void GiveBack(SlotId slot) { free_.push_back(slot); }
  void Admit(int layer, uint16_t expert, SlotId slot);

  SlotId SlotOf(int layer, int expert) const { return slot_of_[Id(layer, expert)]; }
  int resident() const { return resident_; }
  // Empties the cache. REQUIRES: no event is open.
  void Clear();

 private:
  ExpertId Id(int layer, int expert) const {
    return static_cast<ExpertId>(layer) * geometry_.n_experts + expert;
  }
  void Release(ExpertId id);

  Geometry geometry_;
  std::unique_ptr<Policy> policy_;
  EvictableList evictable_;
  std::vector<SlotId> slot_of_;  // by expert id; kNoSlot when not resident
  std::vector<SlotId> free_;
  std::vector<uint16_t> event_experts_;  // pinned by the open event
  std::vector<int64_t> event_next_use_;  // parallel to it, where the event has them
  Event event_;
  int resident_ = 0;
  CacheCounts counts_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_CACHE_H_

// Cache: which experts are resident, in which slot, and which of them are pinned. Bookkeeping only:
// no memory is touched and nothing is read here, so that the simulator runs what the engine runs.
//
// Begin() makes one event's experts resident all at once: residents are hits and get pinned, the
// missing get slots, taken from the free ones and then from the policy's victims. The caller fills
// the missing slots, says Failed() for each that could not be filled, and End() unpins. An expert
// is on exactly one of two lists, pinned or evictable, so evicting one in use cannot be written.
//
// A cache may have spare slots beside those of its residents, for experts whose reading begins
// before their event: BeginAhead() gives one a slot, the event that asks for it makes it a resident
// (a miss like any other, only that its slot may be filled already), and EndAhead() gives the slot
// back when no event did. The policy hears of the event alone, so that its residents are the same
// whether anything is read ahead or not, as long as only spare and free slots are used for it.
// While nothing is to be read ahead for long, LendSpare() lets residents have the spare slots too.
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
  bool hit = false;    // false: the caller must fill the slot
  bool ahead = false;  // a miss whose slot was taken, and perhaps filled, by BeginAhead
};

struct CacheCounts {
  uint64_t events = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t evictions = 0;
};

class Cache {
 public:
  // geometry.n_slots are for residents; n_spare come on top.
  Cache(const Geometry& geometry, std::unique_ptr<Policy> policy, int n_spare = 0);

  const Geometry& geometry() const { return geometry_; }
  int total_slots() const { return geometry_.n_slots + n_spare_; }
  const CacheCounts& counts() const { return counts_; }
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

  // For experts read before anything asked for them: a free slot to read into, kNoSlot where there
  // is none; Admit() then makes the expert a resident, the first to leave, GiveBack() does not.
  // Neither is a hit or a miss. REQUIRES: no event is open; the expert is not resident.
  SlotId TakeFree();
  void GiveBack(SlotId slot) { free_.push_back(slot); }
  void Admit(int layer, uint16_t expert, SlotId slot);

  // Whether residents may fill the spare slots; taken back, the policy's victims leave them.
  // REQUIRES: no event is open.
  void LendSpare(bool lend);

  // Whether the experts held ahead that are not the event's leave it slots enough.
  bool Fits(const Event& event) const;

  // Takes a slot for an expert that is neither resident nor ahead: a free one, or, where
  // `from_spent`, that of a spent expert of another layer than first_layer up to last_layer.
  // RETURNS: kNoSlot when there is none.
  SlotId BeginAhead(int layer, int expert, bool from_spent, int first_layer, int last_layer);
  // The slot is free again. REQUIRES: it has one ahead.
  void EndAhead(int layer, int expert);
  SlotId AheadSlotOf(int layer, int expert) const { return ahead_slot_of_[Id(layer, expert)]; }
  int n_ahead() const { return n_ahead_; }

  SlotId SlotOf(int layer, int expert) const { return slot_of_[Id(layer, expert)]; }
  int resident() const { return resident_; }
  // Empties the cache. REQUIRES: no event is open, nothing is ahead.
  void Clear();

 private:
  ExpertId Id(int layer, int expert) const {
    return static_cast<ExpertId>(layer) * geometry_.n_experts + expert;
  }
  int most_resident() const { return geometry_.n_slots + (lent_ ? n_spare_ : 0); }
  ExpertId NextVictim();
  void Release(ExpertId id);
  void Evict(ExpertId victim);
  void Unlist(ExpertId id);

  Geometry geometry_;
  int n_spare_;
  bool lent_ = false;
  std::unique_ptr<Policy> policy_;
  EvictableList evictable_;
  EvictableList spent_;                // those of evictable_ that leave first
  bool spent_by_policy_ = false;       // the policy chose them
  std::vector<SlotId> slot_of_;        // by expert id; kNoSlot when not resident
  std::vector<SlotId> ahead_slot_of_;  // by expert id; kNoSlot when nothing is read ahead
  std::vector<SlotId> free_;
  std::vector<uint16_t> event_experts_;  // pinned by the open event
  std::vector<int64_t> event_next_use_;  // parallel to it, where the event has them
  Event event_;
  int resident_ = 0;
  int n_ahead_ = 0;
  CacheCounts counts_;
};

}  // namespace remoe

#endif  // REMOE_CACHE_CACHE_H_

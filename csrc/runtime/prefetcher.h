// Prefetcher: carries out a PrefetchPlan. It gives the plan's experts slots of the cache and has the
// storage source fill them; what the next events ask for becomes theirs, the rest is given up, or,
// of a plan for the start, becomes resident.
//
// Owned by one ExpertStore, and called from the one thread that runs events.
#ifndef REMOE_RUNTIME_PREFETCHER_H_
#define REMOE_RUNTIME_PREFETCHER_H_

#include <vector>

#include "cache/cache.h"
#include "prefetch/prefetch_plan.h"
#include "runtime/storage_source.h"
#include "runtime/store_counts.h"

namespace remoe {

class Prefetcher {
 public:
  // `event_slots`: what a prompt's prefetch leaves of the slots. All pointers outlive this.
  Prefetcher(Cache* cache, StorageSource* storage, const std::vector<ExpertLayer>* layers,
             int event_slots, StoreTallies* tallies);

  // Replaces the plan. Experts of the old one whose reading has not begun are given up, and so are
  // those of layers up to `layer`, whose event is over or open. Requests for experts that do not
  // exist are left out. RETURNS how many experts got a slot. REQUIRES: for a plan for the start, no
  // event is open.
  int Start(const PrefetchPlan& plan, int layer);
  // Gives up everything; what is in flight ends by itself.
  void Cancel();
  // Waits for all reads and ends a plan for the start.
  void FinishStart();
  // Gives up everything and waits until nothing is in flight; of a plan for the start, what is
  // complete becomes resident. Nothing is prefetched then. REQUIRES: no event is open.
  void Quiesce();

  // The event is about to be placed: ends a plan for the start, frees what can be freed, and gives
  // up what leaves the event too few slots.
  void MakeRoom(const Event& event);
  // The event was placed: what it took is no more ours.
  void ForgetTaken();
  // An event has ended: more of the plan may have slots.
  int ReserveMore();

  // Experts that may be prefetched for one layer's decode event without taking a resident's place.
  int room() const;
  int event_slots() const { return event_slots_; }
  void set_event_slots(int n) { event_slots_ = n; }

 private:
  ExpertId IdOf(int layer, int expert) const {
    return static_cast<ExpertId>(layer) * cache_->geometry().n_experts + expert;
  }
  bool Exists(const PrefetchRequest& request) const;
  void ForgetPlan();
  // Gives up the slots of which which(load) is true.
  template <typename Which>
  std::vector<SlotId> GiveUp(const Which& which);
  // Frees the given-up slots of which nothing is in flight any more.
  void Reap();
  void EndStart(const Event* event);

  Cache* const cache_;
  StorageSource* const storage_;
  const std::vector<ExpertLayer>* const layers_;
  int event_slots_;
  StoreTallies* const tallies_;

  PrefetchPlan plan_;
  std::vector<bool> planned_;                 // by expert id: is it in plan_?
  int first_planned_ = 0, last_planned_ = 0;  // layers
  size_t next_planned_ = 0;                   // those before it have a slot or are resident
  std::vector<SlotId> slots_;  // prefetched or given up, in the order they were taken
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_PREFETCHER_H_

// StorageSource: fills slots from storage, for an event that waits or for one that may come.
//
// It owns what reading needs and nothing else: the slab, its staging, and a state for each slot
// (slot_load.h). Which expert gets which slot is said by the caller, who asks the cache. All reads
// end in one callback, whoever they were begun for: a prefetch that an event asks for goes on as the
// event's, however far it got. Prefetch reads are background reads of the Reader, which never start
// before a demand read that waits; one that fails is forgotten, and read again on demand.
//
// Called from the one thread that runs events; reads end on I/O threads.
#ifndef REMOE_RUNTIME_STORAGE_SOURCE_H_
#define REMOE_RUNTIME_STORAGE_SOURCE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "gguf/model_file.h"
#include "prefetch/prefetch_plan.h"
#include "runtime/expert_source.h"
#include "runtime/populator.h"
#include "runtime/slab.h"
#include "runtime/slot_layout.h"
#include "runtime/slot_load.h"
#include "runtime/staging.h"
#include "runtime/store_counts.h"
#include "storage/reader.h"

namespace remoe {

// Rewrites a matrix as it came from storage into the form that the compute kernels take. Called on
// an I/O thread, never twice at once for the same destination.
using Transform = std::function<void(int layer, int matrix, const uint8_t* bytes, uint8_t* dest)>;

// What slots are filled from, and into. All but the owned memory outlives the source.
struct StorageParts {
  const ModelFile* model = nullptr;
  const std::vector<ExpertLayer>* layers = nullptr;
  Reader* reader = nullptr;
  Transform transform;  // may be empty when no matrix is transformed
  int n_slots = 0;      // that there may ever be
  int staging_buffers = 0;
  std::unique_ptr<Slab> slab;
  std::unique_ptr<Populator> populator;  // of the slab
  std::unique_ptr<Staging> staging;
};

class StorageSource : public ExpertSource {
 public:
  StorageSource(const SlotLayout& layout, StorageParts parts, StoreTallies* tallies);
  ~StorageSource() override;

  const char* name() const override { return "storage"; }
  // Takes every expert that is no hit. REQUIRES: no event is open.
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  // Waits for every read of the event.
  void End() override;
  // Of the ended event, 0 after a failure: bytes of demand reads, and the time they took.
  uint64_t last_read_bytes() const { return last_read_bytes_; }
  uint64_t last_read_ns() const { return last_read_ns_; }
  // Time from the last demand read of the event before this one to this one's beginning.
  uint64_t idle_window_ns() const { return idle_window_ns_; }

  // --- prefetch; the slots are those of Cache::BeginPrefetch ---
  SlotLoad load(SlotId slot) const;
  // The slot is going to take that expert. REQUIRES: kIdle.
  void Reserve(SlotId slot, int layer, uint16_t expert);
  // Reads into these slots, in this order, and into no others that Prefetch() named before.
  // REQUIRES: kPrefetch or kCancelled; those given up are wanted again.
  void Prefetch(const std::vector<SlotId>& slots, PrefetchPriority priority);
  // Adds to what Prefetch() named.
  void PrefetchMore(const std::vector<SlotId>& slots);
  // Nobody wants what these are filled with; what is in flight ends by itself. RETURNS how many were
  // not cancelled yet.
  int Cancel(const std::vector<SlotId>& slots);
  // Drops what the reader has not begun to read.
  void CancelReads() { parts_.reader->CancelBackground(); }
  // Names no slot to read into any more; cancels none.
  void StopPrefetch();
  // Waits until every read, of whomever, has ended.
  void Drain() { parts_.reader->Drain(); }
  // Waits until nothing is in flight, or to be read, for nobody's event.
  void AwaitReads();
  // Waits until nothing is in flight into these slots.
  void Await(const std::vector<SlotId>& slots);
  // The slot of a prefetch is no more ours. REQUIRES: nothing is in flight into it.
  void Release(SlotId slot);

  uint8_t* matrix(SlotId slot, int layer, int matrix) const {
    return at(slot) + layout_.at(layer, matrix).offset;
  }
  uint8_t* at(SlotId slot) const {
    return parts_.slab->data() + static_cast<uint64_t>(slot) * layout_.slot_bytes();
  }
  // The slot is about to be filled.
  void Touch(SlotId slot) const {
    if (parts_.populator != nullptr)
      parts_.populator->Used((static_cast<uint64_t>(slot) + 1) * layout_.slot_bytes());
  }
  // The first n slots are in use from now on. Higher ones lose what they hold, and their memory is
  // the system's. REQUIRES: no event is open, nothing is prefetched, n <= the parts' n_slots.
  void Resize(int n_slots);
  // REQUIRES: nothing is in flight into either.
  void Move(SlotId from, SlotId to);

  const SlotLayout& layout() const { return layout_; }
  const Slab& slab() const { return *parts_.slab; }
  // From any thread: bytes of the slots in use and of staging, and those of them never touched.
  uint64_t n_bytes() const { return slots_bytes_ + parts_.staging->n_bytes(); }
  uint64_t untouched_bytes() const {
    const uint64_t slots = slots_bytes_;
    if (parts_.populator == nullptr) return 0;  // not this machine's memory
    return slots - std::min(slots, parts_.populator->present_bytes());
  }

 private:
  struct StagedRead {
    SlotId slot = kNoSlot;
    int matrix = 0;
  };
  const ExpertMatrix& MatrixOf(const SlotLoad& load, int matrix) const {
    return (*parts_.layers)[load.layer].matrices[matrix];
  }
  Read MakeRead(SlotId slot, int matrix, bool background) const;
  void Submit(const std::vector<Read>& reads);
  void SubmitDemandLocked(SlotId slot, uint32_t matrices, std::vector<Read>* reads);
  void TakeStagedLocked(std::vector<Read>* reads);
  void TakePrefetchLocked(std::vector<Read>* reads);
  void Fill(const Read& read, const Status& status, int layer, int matrix, SlotId slot);
  void OnRead(const Read& read, const Status& status);
  void AnnounceLocked(SlotLoad* load);
  void FinishLocked(const SlotLoad& load);

  const SlotLayout layout_;
  StorageParts parts_;
  StoreTallies* const tallies_;
  std::atomic<uint64_t> slots_bytes_;

  // Of the one thread that runs events.
  std::vector<SlotId> event_slots_;  // that the event waits for
  std::vector<uint16_t> there_;
  uint64_t idle_window_ns_ = 0, last_read_bytes_ = 0, last_read_ns_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<SlotLoad> loads_;  // by slot
  // The event's.
  Arrivals* arrivals_ = nullptr;
  Arrivals::Ticket ticket_ = 0;
  uint32_t last_matrix_ = 0;       // down, as a bit of SlotLoad::waiting
  std::deque<StagedRead> staged_;  // that wait for a buffer
  int unfinished_ = 0;             // experts with matrices still to come
  uint64_t event_read_bytes_ = 0, event_read_ns_ = 0;
  std::chrono::steady_clock::time_point began_, idle_since_;
  // Prefetch.
  std::deque<SlotId> queue_;  // begun or to begin, in the order of the plan
  PrefetchPriority priority_ = PrefetchPriority::kToken;
  int prefetch_in_flight_ = 0;  // reads
  uint64_t prefetch_in_flight_bytes_ = 0;
  int prefetch_staged_ = 0;  // those of them that hold a staging buffer
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_STORAGE_SOURCE_H_

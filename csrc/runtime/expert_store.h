// ExpertStore: makes the experts of an event resident. It joins the cache (which expert, which
// slot), the reader (bytes from storage) and the slab (memory), and is what a device executes from.
//
// BeginEvent() places the event's experts and starts reading the missing ones; WaitArrived() hands
// them out as they come, if need be without their last matrix, so that the caller can compute with
// what is there already; EndEvent() waits for stragglers and unpins. The first failed read ends the
// event with a Status that names file, layer, expert and offset; the expert stays out of the cache
// and the store goes on working.
//
// PlanAhead() says which experts later events will probably want. The store reads them before, in
// the background: into slots that the cache does not need, never before a demand read that waits.
// What an event then asks for goes on as its own, however far it got; what no event asks for is
// given up, and a failed read of it is forgotten: the event that wants the expert reads it again.
//
// One event at a time, and every call, from one thread. counts() and layer_counts() from
// any thread.
#ifndef REMOE_RUNTIME_EXPERT_STORE_H_
#define REMOE_RUNTIME_EXPERT_STORE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"
#include "cache/profile.h"
#include "gguf/model_file.h"
#include "prefetch/ahead_plan.h"
#include "runtime/populator.h"
#include "runtime/slab.h"
#include "runtime/slot_layout.h"
#include "runtime/staging.h"
#include "storage/reader.h"

namespace remoe {

// Rewrites a matrix as it came from storage into the form that the compute kernels take. Called on
// an I/O thread, never twice at once for the same destination.
using Transform = std::function<void(int layer, int matrix, const uint8_t* bytes, uint8_t* dest)>;

struct StoreCounts {
  uint64_t hits = 0;
  uint64_t misses = 0;  // not resident when their event came, read ahead or not
  // For experts that an event asked for: misses times expert bytes, counted as reads complete (or,
  // of what was read ahead, as the event comes).
  uint64_t bytes_read = 0;
  uint64_t device_bytes = 0;  // moved by storage, rounding to pages included
  uint64_t stall_ns = 0;      // compute waiting for storage
  uint64_t read_ns = 0;       // with a read under way that an event waits for
  uint64_t events = 0;
  uint64_t evictions = 0;
  uint64_t warm_experts = 0;  // made resident before anything asked for them; no hits, no misses
  uint64_t warm_bytes = 0;    // theirs, not among bytes_read
  uint64_t begun_misses = 0;  // those of misses that were handed out before down had come, too
  uint64_t ahead_misses = 0;  // those of misses that were being read, or there, already
  uint64_t ahead_useful_bytes = 0;  // those of bytes_read whose reading began before the event
  uint64_t ahead_wasted_bytes = 0;  // read for nobody; not in bytes_read
  uint64_t ahead_given_up = 0;      // experts begun or planned, and dropped
};

struct LayerCounts {
  uint64_t hits = 0;
  uint64_t misses = 0;
};

struct StoreOptions {
  int n_slots = 0;      // in all
  int n_spare = 0;      // those of n_slots that are kept for reading ahead
  int event_slots = 0;  // what reading ahead always leaves of n_slots
  std::string policy = "reuse-biased";
  std::shared_ptr<const Profile> profile;  // may be null
  bool lock = false;
  int staging_buffers = 2;
};

class ExpertStore {
 public:
  // `model` and `layers` outlive the store. `layout` describes the slots; `transform` may be empty
  // when no matrix is transformed.
  static Result<std::unique_ptr<ExpertStore>> Make(
      const ModelFile* model, const std::vector<ExpertLayer>* layers, const SlotLayout& layout,
      std::unique_ptr<Reader> reader, Transform transform, const StoreOptions& options);
  ~ExpertStore();

  Status BeginEvent(const Event& event);
  // Of the open event, in its order.
  const std::vector<Placement>& placements() const { return placements_; }
  // Whether that expert was there when the event began: resident, or read ahead to the end.
  bool ready(size_t index) const { return ready_[index]; }
  // Experts of the open event that were not ready and that WaitArrived has not handed out yet.
  int missing_to_come() const { return missing_ - handed_out_; }
  // Blocks until another missing expert is there; appends the indices (into placements()) of all
  // that have come since the last call. With `partly`, where there is none of these, an expert of
  // which only the last matrix, down, is still to come ends the wait too, once: appended there.
  // RETURNS: an error when a read failed, at once. REQUIRES: missing_to_come() > 0.
  Status WaitArrived(std::vector<int>* arrived, std::vector<int>* partly = nullptr);
  // Waits for every read of the event, unpins. RETURNS: the first failure of the event.
  Status EndEvent();
  bool open() const { return open_; }

  // Begins to read experts, best first, into slots that are free, in the background. The next event
  // ends it: what has come by then is resident, the rest is not read. RETURNS how many were begun.
  int Warm(const std::vector<ExpertId>& experts);
  // Waits until everything that Warm() began has been read.
  void FinishWarming();
  // How many events each expert was in; and how many tokens chose it.
  const std::vector<uint32_t>& uses() const { return uses_; }
  const std::vector<uint32_t>& choices() const { return choices_; }
  // See Policy::Expect().
  bool Expect(const float* bonus) { return cache_->policy().Expect(bonus); }

  // Replaces what is planned. Experts of the old plan that have not begun are given up.
  void PlanAhead(const AheadPlan& plan);
  // Gives up everything that is read ahead; what is under way ends by itself.
  void CancelAhead();
  // Experts that PlanAhead could read ahead of one layer's decode event without taking a resident's
  // place.
  int ahead_room() const;
  // From the next event on, whether residents may have the slots kept for reading ahead: for as
  // long as nothing is going to be read ahead of decode events.
  void LendSpare(bool lend) { lend_spare_ = lend; }
  // Time from the last demand read of the event before the open one to the open one's beginning.
  uint64_t idle_window_ns() const { return idle_window_ns_; }
  // The last ended event's demand reads: bytes, and time until the last of them had come.
  uint64_t last_read_bytes() const { return last_read_bytes_; }
  uint64_t last_read_ns() const { return last_read_ns_; }
  // What reading ahead leaves of the slots, whatever is planned: events up to this size never wait
  // for it.
  int event_slots() const { return event_slots_; }

  uint8_t* slot(SlotId id) const {
    return slab_->data() + static_cast<uint64_t>(id) * layout_.slot_bytes();
  }
  uint8_t* matrix(SlotId id, int layer, int matrix) const {
    return slot(id) + layout_.at(layer, matrix).offset;
  }
  const SlotLayout& layout() const { return layout_; }
  const std::vector<ExpertLayer>& layers() const { return *layers_; }
  const Cache& cache() const { return *cache_; }
  const Reader& reader() const { return *reader_; }
  // Tests only.
  void SetFaults(const FaultPlan& plan) { reader_->SetFaults(plan); }
  const Slab& slab() const { return *slab_; }
  uint64_t budget_bytes() const { return slab_->n_bytes() + staging_->n_bytes(); }
  StoreCounts counts() const;
  // By layer, in the order of layers().
  std::vector<LayerCounts> layer_counts() const;
  const char* policy_name() const { return policy_name_.c_str(); }

 private:
  struct LayerTally {
    std::atomic<uint64_t> hits{0}, misses{0};
  };
  // What is being read into a slot, and for whom.
  struct Load {
    enum class State : uint8_t { kNone, kAhead, kDemand } state = State::kNone;
    bool given_up = false;  // ahead: nobody wants it; the slot is free once nothing is in flight
    bool failed = false;    // ahead: read no further; demand: the event fails
    bool partly = false;    // demand: was among partly_
    int layer = 0;
    uint16_t expert = 0;
    int index = 0;         // demand: into placements_
    uint32_t waiting = 0;  // matrices that no read was submitted for, by bit
    uint32_t in_flight = 0;
    uint64_t bytes = 0;  // delivered
    bool complete() const { return waiting == 0 && in_flight == 0; }
    bool lacks_only(uint32_t matrix) const { return (waiting | in_flight) == matrix; }
  };
  struct StagedRead {
    SlotId slot = kNoSlot;
    int matrix = 0;
  };
  ExpertStore(const SlotLayout& layout) : layout_(layout) {}

  Read MakeRead(SlotId slot, int matrix, bool background) const;
  void Submit(const std::vector<Read>& reads);
  void SubmitDemandLocked(SlotId slot, uint32_t matrices, std::vector<Read>* reads);
  void TakeStagedLocked(std::vector<Read>* reads);
  void TakeAheadLocked(std::vector<Read>* reads);
  void OnRead(const Read& read, const Status& status);
  void FinishLocked(const Load& load);
  void PartlyLocked(Load* load);
  Status Describe(const Read& read, const Load& load, const Status& status) const;

  void MakeRoomFor(const Event& event);
  void ReserveAhead();
  size_t IdOf(const AheadRequest& request) const {
    return static_cast<size_t>(request.layer) * cache_->geometry().n_experts + request.expert;
  }
  // Frees the slots of experts given up of which nothing is in flight any more.
  void ReapAhead();
  template <typename Which>
  void GiveUpAhead(const Which& which);

  struct Warming {  // an expert that Warm() began to read
    int layer = 0;
    uint16_t expert = 0;
    SlotId slot = kNoSlot;
    int remaining = 0;  // matrices still to come
    bool failed = false;
  };
  Read WarmRead(int index, int matrix) const;
  void SubmitWarm();
  void OnWarmRead(const Read& read, const Status& status);
  void EndWarming();

  const ModelFile* model_ = nullptr;
  const std::vector<ExpertLayer>* layers_ = nullptr;
  SlotLayout layout_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<Slab> slab_;
  std::unique_ptr<Populator> populator_;  // after slab_, whose memory it touches
  std::unique_ptr<Staging> staging_;
  Transform transform_;
  std::string policy_name_;
  int event_slots_ = 0;
  int staging_buffers_ = 0;
  std::unique_ptr<Reader> reader_;

  // Of the one thread that runs events.
  bool open_ = false;
  bool lend_spare_ = false;
  int layer_ = 0;
  int missing_ = 0;
  int handed_out_ = 0;
  uint32_t last_matrix_ = 0;  // of the event's layer, as a bit of Load::waiting
  std::vector<Placement> placements_;
  std::vector<bool> ready_;
  AheadPlan plan_;
  std::vector<bool> planned_;                 // by expert id: is it in plan_?
  int first_planned_ = 0, last_planned_ = 0;  // layers
  size_t next_planned_ = 0;                   // those before it have a slot or are resident
  std::vector<SlotId> ahead_slots_;
  uint64_t idle_window_ns_ = 0, last_read_bytes_ = 0, last_read_ns_ = 0;
  std::chrono::steady_clock::time_point began_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Load> loads_;   // by slot
  std::vector<int> arrived_;  // complete, not yet handed out
  std::vector<int> partly_;   // complete but for down, not yet handed out
  bool partly_awaited_ = false;
  std::deque<StagedRead> staged_;  // of the event, waiting for a buffer
  std::deque<SlotId> ahead_;       // begun or to begin, in the order of the plan
  bool streaming_ = false;         // of the plan that ahead_ is from
  int ahead_in_flight_ = 0;        // reads
  uint64_t ahead_in_flight_bytes_ = 0;
  int ahead_staged_ = 0;  // those of them that hold a staging buffer
  int unfinished_ = 0;    // missing experts with matrices still to come
  Status failure_;
  uint64_t event_read_bytes_ = 0, event_read_ns_ = 0;
  std::chrono::steady_clock::time_point idle_since_;

  // Under the mutex while any of it is in flight.
  std::vector<Warming> warming_;
  std::vector<std::pair<int, int>> warm_staged_;  // (index, matrix), those from next_ on wait
  size_t next_warm_staged_ = 0;
  int warm_in_flight_ = 0;
  bool warm_ends_ = false;

  std::vector<uint32_t> uses_, choices_;  // by expert id
  std::atomic<uint64_t> warm_experts_{0}, warm_bytes_{0};
  std::atomic<uint64_t> hits_{0}, misses_{0}, bytes_read_{0}, stall_ns_{0}, read_ns_{0}, events_{0},
      evictions_{0}, begun_misses_{0}, ahead_misses_{0}, ahead_useful_bytes_{0},
      ahead_wasted_bytes_{0}, ahead_given_up_{0};
  std::vector<LayerTally> layer_tallies_;  // never resized once made
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_EXPERT_STORE_H_

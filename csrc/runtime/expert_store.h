// ExpertStore: makes the experts of an event resident. It joins the cache (which expert, which
// slot), the reader (bytes from storage) and the slab (memory), and is what a device executes from.
//
// BeginEvent() places the event's experts and starts reading the missing ones; WaitArrived() hands
// them out as they come, so that the caller can compute with those already there; EndEvent() waits
// for stragglers and unpins. The first failed read ends the event with a Status that names file,
// layer, expert and offset; the expert stays out of the cache and the store goes on working.
//
// One event at a time, from one thread. counts() and layer_counts() from any thread.
#ifndef REMOE_RUNTIME_EXPERT_STORE_H_
#define REMOE_RUNTIME_EXPERT_STORE_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"
#include "cache/profile.h"
#include "gguf/model_file.h"
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
  uint64_t misses = 0;
  uint64_t bytes_read = 0;    // misses times expert bytes, counted as reads complete
  uint64_t device_bytes = 0;  // moved by storage, rounding to pages included
  uint64_t stall_ns = 0;      // compute waiting for storage
  uint64_t events = 0;
  uint64_t evictions = 0;
  uint64_t warm_experts = 0;  // made resident before anything asked for them; no hits, no misses
  uint64_t warm_bytes = 0;    // theirs, not among bytes_read
};

struct LayerCounts {
  uint64_t hits = 0;
  uint64_t misses = 0;
};

struct StoreOptions {
  int n_slots = 0;
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
  // Missing experts of the open event that WaitArrived has not handed out yet.
  int missing_to_come() const { return missing_ - handed_out_; }
  // Blocks until another missing expert is there; appends the indices (into placements()) of all
  // that have come since the last call. RETURNS: an error when a read failed, at once. REQUIRES:
  // missing_to_come() > 0.
  Status WaitArrived(std::vector<int>* arrived);
  // Waits for every read of the event, unpins. RETURNS: the first failure of the event.
  Status EndEvent();
  bool open() const { return open_; }

  // Begins to read experts, best first, into slots that are free, in the background. The next event
  // ends it: what has come by then is resident, the rest is not read. RETURNS how many were begun.
  int Warm(const std::vector<ExpertId>& experts);
  // Waits until everything that Warm() began has been read.
  void FinishWarming();
  // How many events each expert was in.
  const std::vector<uint32_t>& uses() const { return uses_; }

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
  struct Pending {      // a missing expert of the open event
    int remaining = 0;  // matrices still to come
    bool failed = false;
  };
  ExpertStore(const SlotLayout& layout) : layout_(layout) {}
  void SubmitStaged();
  void OnRead(const Read& read, const Status& status);
  void Finish(int index, const Status& status);

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
  std::unique_ptr<Staging> staging_;
  Transform transform_;
  std::string policy_name_;
  // Destroyed first: it waits for reads that land in the slab and the staging buffers.
  std::unique_ptr<Reader> reader_;

  bool open_ = false;
  int layer_ = 0;
  int missing_ = 0;
  int handed_out_ = 0;
  std::vector<Placement> placements_;
  std::vector<Read> in_place_;  // of the event being begun

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Pending> pending_;  // by index into placements_
  std::vector<int> arrived_;      // complete, not yet handed out
  std::vector<Read> staged_;      // of the event; those from next_staged_ on wait for a buffer
  size_t next_staged_ = 0;
  int unfinished_ = 0;  // missing experts with matrices still to come
  Status failure_;

  // Under the mutex while any of it is in flight.
  std::vector<Warming> warming_;
  std::vector<std::pair<int, int>> warm_staged_;  // (index, matrix), those from next_ on wait
  size_t next_warm_staged_ = 0;
  int warm_in_flight_ = 0;
  bool warm_ends_ = false;

  std::vector<uint32_t> uses_;  // by expert id
  std::atomic<uint64_t> warm_experts_{0}, warm_bytes_{0};
  std::atomic<uint64_t> hits_{0}, misses_{0}, bytes_read_{0}, stall_ns_{0}, events_{0},
      evictions_{0};
  std::vector<LayerTally> layer_tallies_;  // never resized once made
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_EXPERT_STORE_H_

// ExpertStore: makes the experts of an event resident. It joins the cache (which expert, which
// slot) with the sources that fill slots (residents, storage) and the prefetcher, and is what a
// device executes from. A failed read comes as an arrival whose Status names file, layer, expert
// and offset; the expert stays out of the cache and the store goes on working.
//
//     BeginStep()  opens the arrivals of a layer's step
//     BeginEvent() places the step's experts, or a wave of them; each source begins
//     Wait()       hands out what has come, if need be an expert without its last matrix
//     EndEvent()   waits for stragglers, unpins, says the first failure
//     Prefetch()   says what later events will want; a failed read of it is forgotten
//     Resize()     gives slots back to the system, or takes them again
//
// One event at a time, and every call, from one thread; counts(), layer_counts() and sizes from any. The
// reader, the model and its layers outlive the store; the store owns all else.
#ifndef REMOE_RUNTIME_EXPERT_STORE_H_
#define REMOE_RUNTIME_EXPERT_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"
#include "cache/profile.h"
#include "gguf/model_file.h"
#include "prefetch/prefetch_plan.h"
#include "runtime/arrivals.h"
#include "runtime/coarse_source.h"
#include "runtime/prefetcher.h"
#include "runtime/resident_source.h"
#include "runtime/slot_layout.h"
#include "runtime/slot_memory.h"
#include "runtime/storage_source.h"
#include "runtime/store_counts.h"
#include "storage/reader.h"

namespace remoe {

struct LayerCounts {
  uint64_t hits = 0;
  uint64_t misses = 0;
};

struct StoreOptions {
  int n_slots = 0;      // in all
  int most_slots = 0;   // that Resize() may give it, where they are more
  int n_reserved = 0;   // those of n_slots that are kept for prefetch
  int event_slots = 0;  // what prefetch always leaves of n_slots
  std::string policy = "reuse-biased";
  std::shared_ptr<const Profile> profile;  // may be null
  bool lock = false;
  int staging_buffers = 2;
  // Where slots lie, of n_slots * slot_bytes; null: in a slab of host memory. The layout's matrices
  // are all staged then, and its staging holds the buffers.
  std::shared_ptr<SlotMemory> memory;
  // Where experts may be had in a coarser form; no layers: nowhere.
  CoarseParts coarse;
};

class ExpertStore {
 public:
  // `layout` describes the slots; `transform` may be empty when no matrix is transformed. Fails
  // with kOutOfMemory, and nothing made, where slab or staging cannot be had.
  static Result<std::unique_ptr<ExpertStore>> Make(const ModelFile* model,
                                                   const std::vector<ExpertLayer>* layers,
                                                   const SlotLayout& layout, Reader* reader,
                                                   Transform transform,
                                                   const StoreOptions& options);
  ~ExpertStore();

  // Opens the arrivals of a step. RETURNS the ticket under which sources post to them.
  Arrivals::Ticket BeginStep() { return arrivals_.Open(); }
  // Nobody waits any more: what arrives late is dropped. REQUIRES: no event is open.
  void EndStep() { arrivals_.Close(); }
  Arrivals* arrivals() { return &arrivals_; }
  // Experts in a coarser form; null where there are none.
  CoarseSource* coarse() { return coarse_.get(); }

  // REQUIRES: no event is open; BeginStep() was called.
  Status BeginEvent(const Event& event);
  // A step of which some experts are computed elsewhere: the policy hears of them all. What is left
  // for BeginEvent() continues it. REQUIRES: no event is open.
  void Note(const Event& event);
  // Of the open event, in its order.
  const std::vector<Placement>& placements() const { return placements_; }
  // Blocks until something has arrived, and appends it; see Arrivals::Wait().
  void Wait(bool all_but_down, std::vector<Arrival>* arrived);
  // Waits for every read of the event, unpins. RETURNS: the first failure of the event.
  Status EndEvent();
  bool open() const { return open_; }

  // Has n_slots in all from now on, of which n_reserved are kept for prefetch. What is prefetched is
  // given up, residents that do not fit are evicted, and the memory of the slots is the system's at
  // once. No expert changes its bytes. REQUIRES: no event is open; 1 <= n_slots - n_reserved;
  // n_slots <= most_slots().
  void Resize(int n_slots, int n_reserved, int event_slots);
  int n_slots() const { return n_slots_; }
  int most_slots() const { return most_slots_; }

  // Replaces what is planned. RETURNS how many experts got a slot: none, for a plan for the start,
  // while an event is open.
  int Prefetch(const PrefetchPlan& plan);
  // Gives up everything that is prefetched; what is in flight ends by itself.
  void CancelPrefetch() { prefetcher_->Cancel(); }
  // Waits until a plan for the start has been read, and makes its experts resident.
  void FinishStart();
  // Waits until nothing is being read. From any thread.
  void AwaitReads() { storage_->AwaitReads(); }
  // Empties the slot of a resident. REQUIRES: no event is open.
  void Drop(int layer, uint16_t expert) { cache_->Drop(layer, expert); }
  // From the next event on, whether residents may have the reserved slots: for as long as nothing
  // is going to be prefetched for decode events.
  void ShareReserved(bool share) { share_reserved_ = share; }
  // What prefetch leaves of the slots, whatever is planned: events up to this size never wait for
  // it.
  int event_slots() const { return prefetcher_->event_slots(); }
  uint64_t idle_window_ns() const { return storage_->idle_window_ns(); }
  uint64_t last_read_bytes() const { return storage_->last_read_bytes(); }
  uint64_t last_read_ns() const { return storage_->last_read_ns(); }

  // How many events each expert was in; and how many tokens chose it.
  const std::vector<uint32_t>& uses() const { return uses_; }
  const std::vector<uint32_t>& choices() const { return choices_; }
  // See Policy::Expect().
  bool Expect(const float* bonus) { return cache_->policy().Expect(bonus); }

  // By expert id: the policy's scores, logits for being used soon; of a policy that has none, made
  // of the uses so far.
  void Scores(std::vector<float>* scores) const;

  uint8_t* matrix(SlotId id, int layer, int matrix) const {
    return storage_->matrix(id, layer, matrix);
  }
  const std::vector<ExpertLayer>& layers() const { return *layers_; }
  const Cache& cache() const { return *cache_; }
  const Slab& slab() const { return storage_->slab(); }
  uint64_t budget_bytes() const {
    return storage_->n_bytes() + (coarse_ == nullptr ? 0 : coarse_->n_bytes());
  }
  uint64_t untouched_bytes() const { return storage_->untouched_bytes(); }
  StoreCounts counts() const;
  // By layer, in the order of layers().
  std::vector<LayerCounts> layer_counts() const;
  const char* policy_name() const { return policy_name_.c_str(); }

 private:
  struct LayerTally {
    std::atomic<uint64_t> hits{0}, misses{0};
  };
  ExpertStore(const std::vector<ExpertLayer>* layers, const SlotLayout& layout,
              std::unique_ptr<Cache> cache, StorageParts parts, int event_slots);
  Status AddCoarse(const CoarseParts& parts);
  static Result<std::unique_ptr<Slab>> MakeSlab(uint64_t slot_bytes, const StoreOptions& options,
                                                int* most_slots);
  void CountUses(const Event& event);

  const std::vector<ExpertLayer>* const layers_;
  const Reader* const reader_;
  const std::string policy_name_;
  const int most_slots_;
  std::atomic<int> n_slots_;
  StoreTallies tallies_;
  std::vector<LayerTally> layer_tallies_;  // never resized once made
  Arrivals arrivals_;
  const std::unique_ptr<Cache> cache_;
  ResidentSource residents_;
  const std::unique_ptr<StorageSource> storage_;  // before the prefetcher, which uses it
  std::unique_ptr<CoarseSource> coarse_;
  std::vector<ExpertSource*> sources_;  // of weights, in the order in which they are asked
  const std::unique_ptr<Prefetcher> prefetcher_;

  bool open_ = false;
  bool share_reserved_ = false;
  int layer_ = 0;
  std::vector<Placement> placements_;
  std::vector<bool> taken_;
  std::vector<SlotMove> moves_;
  std::vector<uint32_t> uses_, choices_;  // by expert id
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_EXPERT_STORE_H_

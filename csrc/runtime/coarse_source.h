// CoarseSource: fills slots from a second file, which has the model's experts in a coarser form.
//
// It takes what was wished for in that form, misses alone: fewer bytes, into a slot of the usual size,
// by a layout of their own. Which form a resident has is remembered here; where a better one is
// needed, whoever knows that has the resident dropped first, so that it is read as any other miss.
// What was prefetched is in the model's own form.
//
// Called from the one thread that runs events; reads end on I/O threads. The reader, the layers and
// the StorageSource, whose slots these are, outlive it.
#ifndef REMOE_RUNTIME_COARSE_SOURCE_H_
#define REMOE_RUNTIME_COARSE_SOURCE_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cache/policy.h"
#include "gguf/model_file.h"
#include "runtime/expert_source.h"
#include "runtime/slot_layout.h"
#include "runtime/staging.h"
#include "runtime/store_counts.h"
#include "storage/reader.h"

namespace remoe {

class StorageSource;

struct CoarseParts {
  const ModelFile* file = nullptr;
  const std::vector<ExpertLayer>* layers = nullptr;  // as many as the model's, in their order
  const SlotLayout* layout = nullptr;                // in slots of the model's size
  Reader* reader = nullptr;
  int first_shard = 0;  // where the file's shards begin among the reader's files
};

class CoarseSource : public ExpertSource {
 public:
  static constexpr int kStagingBuffers = 4;

  // kOutOfMemory where staging cannot be had.
  static Result<std::unique_ptr<CoarseSource>> Make(const CoarseParts& parts,
                                                    const Geometry& geometry,
                                                    const StorageSource* slots,
                                                    StoreTallies* tallies);

  // Waits for the reader: a callback goes on for a moment after the last read of an event has ended.
  ~CoarseSource() override;

  const char* name() const override { return "coarse"; }
  // These experts of the next event will do in the coarse form; others have to come whole.
  void Wish(const std::vector<uint16_t>& experts) { wished_ = experts; }
  // The form of a resident, or of what the open event has placed.
  bool IsCoarse(int layer, uint16_t expert) const { return coarse_[IdOf(layer, expert)]; }
  // If that expert becomes resident without an event, it is in the model's own form.
  void Forget(ExpertId id) { coarse_[id] = false; }

  // Takes what was wished for. REQUIRES: no event is open.
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  // Waits for every read of the event. REQUIRES: the StorageSource's End() came first.
  void End() override;
  uint64_t n_bytes() const { return staging_->n_bytes(); }

 private:
  struct Load {
    uint16_t expert = 0;
    SlotId slot = kNoSlot;
    uint32_t left = 0;  // matrices still to come, by bit
    bool failed = false, announced = false;
  };
  CoarseSource(const CoarseParts& parts, const Geometry& geometry, const StorageSource* slots,
               StoreTallies* tallies, std::unique_ptr<Staging> staging);
  ExpertId IdOf(int layer, uint16_t expert) const {
    return static_cast<ExpertId>(layer) * n_experts_ + expert;
  }
  Read MakeRead(int load, int matrix, uint8_t* buffer) const;
  void Submit(const std::vector<Read>& reads);
  void TakeStagedLocked(std::vector<Read>* reads);
  void Fill(const Read& read, const Status& status, int load, int matrix);
  void OnRead(const Read& read, const Status& status);
  uint8_t* At(SlotId slot, int matrix) const;

  const CoarseParts parts_;
  const StorageSource* const slots_;
  StoreTallies* const tallies_;
  const std::unique_ptr<Staging> staging_;
  const int n_experts_;
  std::vector<uint16_t> wished_;
  std::vector<bool> coarse_;  // by expert id
  std::vector<Load> loads_;   // the event's; none is added while reads are in flight
  int layer_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  Arrivals* arrivals_ = nullptr;
  Arrivals::Ticket ticket_ = 0;
  std::deque<std::pair<int, int>> staged_;  // loads and matrices that wait for a buffer
  int unfinished_ = 0;                      // loads
  std::chrono::steady_clock::time_point began_, ended_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_COARSE_SOURCE_H_

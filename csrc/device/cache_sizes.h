// CacheSizes: what an expert cache of so many slots takes, and how its slots are shared out.
//
// Arithmetic over a model's layers, in bytes and slots: the budget that a number of slots needs,
// staging included, and the other way round; how many slots are reserved for prefetch; the smallest
// cache that works. Nothing is allocated here.
//
// Immutable, so safe to share between threads. The file and the layers outlive it.
#ifndef REMOE_DEVICE_CACHE_SIZES_H_
#define REMOE_DEVICE_CACHE_SIZES_H_

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "gguf/model_file.h"
#include "prefetch/governor.h"
#include "runtime/slot_layout.h"

namespace remoe {

class CacheSizes {
 public:
  // Both outlive this. `coarse_staged_bytes`: the largest matrix in a coarser form that is staged.
  CacheSizes(const ModelFile* file, const std::vector<ExpertLayer>* layers, SlotLayout layout,
             uint64_t coarse_staged_bytes = 0);

  // Bytes that a cache of n_slots takes in all, staging included; and its inverse.
  uint64_t BudgetFor(int n_slots) const;
  int SlotsFor(uint64_t budget_bytes) const;
  // kBudgetTooSmall naming the smallest cache that works.
  Status Check(int n_slots) const;
  int StagingBuffers(int n_slots) const;
  // Of n_slots, those kept for prefetch: none of a small cache, unless it was asked for.
  int ReservedSlots(int n_slots, PrefetchMode prefetch) const;
  // kAuto is kOff for models whose reads are over before anything could be hidden behind them.
  PrefetchMode Settled(PrefetchMode prefetch) const;
  // Bytes that PairRunner may take for a batch of n_tokens which one expert takes all of.
  uint64_t ScratchBytes(int n_tokens) const;

  const SlotLayout& layout() const { return layout_; }
  int n_experts() const { return n_experts_; }  // of the layer with the most
  int total_experts() const { return total_experts_; }

 private:
  const ModelFile* file_;
  const std::vector<ExpertLayer>* layers_;
  SlotLayout layout_;
  uint64_t coarse_staging_bytes_;
  int n_experts_ = 0;
  int total_experts_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_CACHE_SIZES_H_

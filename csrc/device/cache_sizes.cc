#include "device/cache_sizes.h"

#include <algorithm>

#include "base/format.h"
#include "device/compute/activations.h"
#include "device/compute/pair_runner.h"
#include "runtime/coarse_source.h"
#include "runtime/staging.h"

namespace remoe {

namespace {

constexpr int kMaxStagingBuffers = 16;
constexpr uint64_t kPrefetchExpertBytes = 256u << 20;
constexpr int kMaxReservedSlots = 4;

}  // namespace

CacheSizes::CacheSizes(const ModelFile* file, const std::vector<ExpertLayer>* layers,
                       SlotLayout layout, uint64_t coarse_staged_bytes)
    : file_(file),
      layers_(layers),
      layout_(std::move(layout)),
      coarse_staging_bytes_(CoarseSource::kStagingBuffers *
                            Staging::BufferBytes(coarse_staged_bytes)) {
  for (const ExpertLayer& layer : *layers_) {
    n_experts_ = std::max(n_experts_, layer.n_experts);
    total_experts_ += layer.n_experts;
  }
}

// Enough staging to keep the storage busy, and never more than a sixteenth of the slots.
int CacheSizes::StagingBuffers(int n_slots) const {
  const uint64_t buffer_bytes = Staging::BufferBytes(layout_.staged_bytes());
  if (buffer_bytes == 0) return 0;
  const uint64_t slots_bytes = layout_.slot_bytes() * static_cast<uint64_t>(n_slots);
  return static_cast<int>(
      std::clamp<uint64_t>(slots_bytes / 16 / buffer_bytes, 1, kMaxStagingBuffers));
}

uint64_t CacheSizes::BudgetFor(int n_slots) const {
  return layout_.slot_bytes() * static_cast<uint64_t>(n_slots) +
         StagingBuffers(n_slots) * Staging::BufferBytes(layout_.staged_bytes()) +
         coarse_staging_bytes_;
}

int CacheSizes::SlotsFor(uint64_t budget_bytes) const {
  int n = static_cast<int>(std::min<uint64_t>(budget_bytes / layout_.slot_bytes(),
                                              static_cast<uint64_t>(total_experts_)));
  while (n > 0 && BudgetFor(n) > budget_bytes) n--;
  return n;
}

Status CacheSizes::Check(int n_slots) const {
  const int floor = file_->n_experts_used();
  if (n_slots >= std::max(floor, 1)) return Status::Ok();
  return Status(
      Code::kBudgetTooSmall,
      Format("the expert cache is below the floor: one token uses %d experts of a layer at "
             "once, which takes %.2f MiB (--cache %lluKiB or more)",
             floor, BudgetFor(floor) / 1048576.0,
             static_cast<unsigned long long>((BudgetFor(floor) + 1023) / 1024)));
}

int CacheSizes::ReservedSlots(int n_slots, PrefetchMode prefetch) const {
  if (prefetch == PrefetchMode::kOff || n_slots >= total_experts_) return 0;
  const int wished = prefetch == PrefetchMode::kOn ? std::max(1, n_slots / 64) : n_slots / 64;
  return std::max(0, std::min({wished, kMaxReservedSlots, n_slots - file_->n_experts_used()}));
}

PrefetchMode CacheSizes::Settled(PrefetchMode prefetch) const {
  const bool small = file_->expert_bytes() < kPrefetchExpertBytes;
  return prefetch == PrefetchMode::kAuto && small ? PrefetchMode::kOff : prefetch;
}

// A pair needs what each product gives, and as much again for its input and what stands between.
uint64_t CacheSizes::ScratchBytes(int n_tokens) const {
  uint64_t most = 0, converted = 0;
  for (const ExpertLayer& layer : *layers_) {
    uint64_t n_values = 0;
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = file_->tensors()[matrix.tensor];
      n_values += tensor.ne[1];
      if (matrix.matrix == Matrix::kDown) continue;
      const ggml_type type = ActivationType(static_cast<ggml_type>(tensor.type));
      converted = std::max<uint64_t>(converted, ggml_row_size(type, tensor.ne[0]));
    }
    most = std::max(most, 2 * n_values * sizeof(float));
  }
  const uint64_t n = static_cast<uint64_t>(n_tokens);
  return std::max<uint64_t>(PairRunner::kScratchBytes, most * n) + converted * n;
}

}  // namespace remoe

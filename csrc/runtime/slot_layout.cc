#include "runtime/slot_layout.h"

#include <algorithm>

#include "base/rounding.h"
#include "storage/reader.h"

namespace remoe {

namespace {

// Vector loads of the compute kernels like a cache line.
constexpr uint64_t kAlign = 64;

}  // namespace

SlotLayout::SlotLayout(const std::vector<ExpertLayer>& layers,
                       const std::vector<std::vector<bool>>& transformed) {
  bool any_in_place = false;
  for (size_t l = 0; l < layers.size(); l++) {
    std::vector<MatrixSlot> slots;
    uint64_t end = 0;
    for (size_t m = 0; m < layers[l].matrices.size(); m++) {
      const ExpertMatrix& matrix = layers[l].matrices[m];
      MatrixSlot slot;
      slot.in_place = !transformed[l][m] && matrix.expert_bytes % kPage == 0;
      if (slot.in_place) {
        // The read may spill into the whole first and last page, which so belong to this matrix
        // alone.
        any_in_place = true;
        const uint64_t residue = matrix.offset % kPage;
        slot.offset = RoundUp(end, kPage) + residue;
        end = RoundUp(slot.offset + matrix.expert_bytes, kPage);
      } else {
        slot.offset = RoundUp(end, kAlign);
        end = slot.offset + matrix.expert_bytes;
        staged_bytes_ = std::max(staged_bytes_, matrix.expert_bytes);
      }
      slots.push_back(slot);
    }
    slot_bytes_ = std::max(slot_bytes_, end);
    matrices_.push_back(std::move(slots));
  }
  slot_bytes_ = RoundUp(slot_bytes_, any_in_place ? kPage : kAlign);
}

}  // namespace remoe

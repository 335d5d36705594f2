#include "runtime/slot_layout.h"

#include <algorithm>

#include "base/rounding.h"
#include "storage/reader.h"

namespace remoe {

SlotLayout::SlotLayout(const std::vector<ExpertLayer>& layers,
                       const std::vector<std::vector<bool>>& transformed, const SlotRules& rules) {
  bool any_in_place = false;
  for (size_t l = 0; l < layers.size(); l++) {
    std::vector<MatrixSlot> slots;
    uint64_t end = 0;
    for (size_t m = 0; m < layers[l].matrices.size(); m++) {
      const ExpertMatrix& matrix = layers[l].matrices[m];
      MatrixSlot slot;
      slot.room_bytes = rules.room.empty() ? matrix.expert_bytes : rules.room[l][m];
      slot.in_place = !rules.staged && !transformed[l][m] && matrix.expert_bytes % kPage == 0;
      if (slot.in_place) {
        // The read may spill into the whole first and last page, which so belong to this matrix
        // alone.
        any_in_place = true;
        const uint64_t residue = matrix.offset % kPage;
        slot.offset = RoundUp(end, kPage) + residue;
        end = RoundUp(slot.offset + matrix.expert_bytes, kPage);
      } else {
        slot.offset = RoundUp(end, rules.align);
        end = slot.offset + slot.room_bytes;
        staged_bytes_ = std::max(staged_bytes_, matrix.expert_bytes);
      }
      slots.push_back(slot);
    }
    slot_bytes_ = std::max(slot_bytes_, end);
    matrices_.push_back(std::move(slots));
  }
  slot_bytes_ = RoundUp(slot_bytes_, any_in_place ? kPage : rules.align);
  slot_bytes_ = (slot_bytes_ + rules.stride - 1) / rules.stride * rules.stride;
}

SlotLayout SlotLayout::Beside(const SlotLayout& other) const {
  SlotLayout both = *this;
  both.slot_bytes_ = std::max(slot_bytes_, other.slot_bytes_);
  if (slot_bytes_ % kPage == 0 || other.slot_bytes_ % kPage == 0) {
    both.slot_bytes_ = RoundUp(both.slot_bytes_, kPage);
  }
  return both;
}

}  // namespace remoe

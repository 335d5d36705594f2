// SlotLayout: where an expert's matrices lie inside a slot.
//
// All slots have one size, so that any slot can take any expert of any layer, and a layer's matrix
// is at the same place in every slot, so that the slab can stand in for the expert tensor with the
// slot size as its stride. A matrix is read in place (no copy between storage and slot) when its
// experts all have the same residue modulo the page size, that is, when expert_bytes is a multiple
// of kPage; the residue is then carried into the slot. Otherwise, and for matrices that are
// rewritten on arrival
// (`transformed`), it is staged elsewhere and takes just its bytes here.
//
// Immutable; safe to share.
#ifndef REMOE_RUNTIME_SLOT_LAYOUT_H_
#define REMOE_RUNTIME_SLOT_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "gguf/model_file.h"

namespace remoe {

struct MatrixSlot {
  uint64_t offset = 0;    // of the first weight, from the start of the slot
  bool in_place = false;  // storage writes straight into the slot
};

class SlotLayout {
 public:
  // `transformed[layer][matrix]`: the matrix is rewritten on arrival. Same shape as `layers`.
  SlotLayout(const std::vector<ExpertLayer>& layers,
             const std::vector<std::vector<bool>>& transformed);

  uint64_t slot_bytes() const { return slot_bytes_; }
  const MatrixSlot& at(int layer, int matrix) const { return matrices_[layer][matrix]; }
  // The largest matrix that is staged, 0 when all are read in place.
  uint64_t staged_bytes() const { return staged_bytes_; }

 private:
  std::vector<std::vector<MatrixSlot>> matrices_;
  uint64_t slot_bytes_ = 0;
  uint64_t staged_bytes_ = 0;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_SLOT_LAYOUT_H_

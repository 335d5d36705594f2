// SlotLayout: where an expert's matrices lie inside a slot.
//
//     slot:   | gate, page-aligned + residue | up, ...         | down, ...       | padding |
//     offset    at(layer, 0).offset            at(layer, 1)      at(layer, 2)      slot_bytes()
//
// All slots have one size, so that any slot takes any expert of any layer. A layer's matrix is at
// the same offset in every slot, so that the slab can stand in for the expert tensor, with
// slot_bytes() as its stride. A matrix takes its place in one of two ways:
//
//     in_place  its experts all have one residue modulo the page size, that is, expert_bytes is a
//               multiple of kPage: storage writes straight into the slot, residue carried over
//     staged    any other size, and whatever is rewritten on arrival (`transformed`): read into a
//               staging buffer, then copied or rewritten into just its bytes of the slot
//
// Immutable, and so thread-safe.
#ifndef REMOE_RUNTIME_SLOT_LAYOUT_H_
#define REMOE_RUNTIME_SLOT_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "gguf/model_file.h"

namespace remoe {

// What the memory that slots lie in asks for.
struct SlotRules {
  uint64_t align = 64;  // of each matrix; vector loads of the CPU's kernels like a cache line
  uint64_t stride = 1;  // slot_bytes() is a multiple of it
  bool staged = false;  // all matrices are, whatever their size
  // Bytes of each matrix with what kernels read beyond its end, zeros always; empty: its own.
  std::vector<std::vector<uint64_t>> room;
};

struct MatrixSlot {
  uint64_t offset = 0;      // of the first weight, from the start of the slot
  bool in_place = false;    // storage writes straight into the slot
  uint64_t room_bytes = 0;  // it, and what kernels read beyond its end
};

class SlotLayout {
 public:
  // `transformed[layer][matrix]`: the matrix is rewritten on arrival. Same shape as `layers`.
  SlotLayout(const std::vector<ExpertLayer>& layers,
             const std::vector<std::vector<bool>>& transformed,
             const SlotRules& rules = SlotRules());

  // The same in slots that are large enough for that one too: a slot then holds an expert in either
  // form.
  SlotLayout Beside(const SlotLayout& other) const;

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

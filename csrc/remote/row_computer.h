// RowComputer: computes experts' rows from weights of this machine.
//
// A worker answers with one; an engine checks a worker's answers with one of its own. How a layer's
// FFN is computed it is told by a recipe: bytes that the device makes from a graph, and reads. What
// a recipe says is checked before anything is computed.
//
// HeldExperts: which experts a worker has in memory, for one whose engines choose them.
//
// Any thread; calls of a computer take turns.
#ifndef REMOE_REMOTE_ROW_COMPUTER_H_
#define REMOE_REMOTE_ROW_COMPUTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

struct ExpertSums {
  std::vector<uint64_t> matrices;  // Checksum64 of each, as the file has it
  uint64_t whole = 0;              // of those sums, then of its biases
};

class RowComputer {
 public:
  struct Learned {
    int recipe = 0;     // number for Compute()
    std::string kind;   // equal where operations, types and shapes are
    int64_t n_in = 0;   // values of a row
    int64_t n_out = 0;  // values of what it gives
  };
  virtual ~RowComputer() = default;
  virtual Result<Learned> Learn(int layer, const std::string& recipe) = 0;
  // rows: [n_rows][n_in]; sets *out to [n_rows][n_out].
  virtual Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                         std::vector<float>* out) = 0;
  virtual Result<ExpertSums> Sums(int layer, uint16_t expert) = 0;
  // Copies a part of an expert's matrix, as the file has it. kNotSupported where memory has it
  // otherwise, or not at all.
  virtual Status CopyWeights(int layer, uint16_t expert, int matrix, uint64_t begin, size_t n,
                             uint8_t* dest) {
    return Status(Code::kNotSupported, "it sends no weights");
  }
  // Of one matrix of an expert, 0 where there is none.
  virtual uint64_t MatrixBytes(int layer, int matrix) const { return 0; }
  // As a person calls it: with the model's own number of the layer.
  virtual std::string Name(int layer, int expert) const = 0;
};

class HeldExperts {
 public:
  virtual ~HeldExperts() = default;
  // Reads an expert into memory; nothing of what computes meanwhile waits for storage. REQUIRES:
  // fewer than the capacity are held.
  virtual Status Hold(int layer, uint16_t expert) = 0;
  // REQUIRES: it is held, and nothing computes with it.
  virtual void Drop(int layer, uint16_t expert) = 0;
  virtual bool Exists(uint32_t layer, uint32_t expert) const = 0;
  virtual uint64_t ExpertBytes(int layer) const = 0;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_ROW_COMPUTER_H_

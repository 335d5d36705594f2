// RowComputer: computes experts' rows from weights of this machine.
//
// A worker answers with one; an engine checks a worker's answers with one of its own. How a layer's
// FFN is computed it is told by a recipe: bytes that the device makes from a graph, and reads. What
// a recipe says is checked before anything is computed.
//
// Any thread; calls take turns.
#ifndef REMOE_REMOTE_ROW_COMPUTER_H_
#define REMOE_REMOTE_ROW_COMPUTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

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
  // Checksum64 over an expert's matrices, then its biases.
  virtual Result<uint64_t> Sum(int layer, uint16_t expert) = 0;
  // As a person calls it: with the model's own number of the layer.
  virtual std::string Name(int layer, int expert) const = 0;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_ROW_COMPUTER_H_

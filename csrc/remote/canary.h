// Canary: a worker's own check that it still computes what it computed at first.
//
// It stands between the server and the computer. As engines teach it how layers are computed, it
// keeps the answer to one row for each kind of layer. Check() computes one of them anew, and sums
// the bytes of one expert, in turn: a bit that has flipped in memory, or a computer that is stuck,
// is found by whoever supervises the worker, and not by an engine's audit first.
//
// Owns nothing; what it is given outlives it. Any thread; calls take turns with those of engines.
#ifndef REMOE_REMOTE_CANARY_H_
#define REMOE_REMOTE_CANARY_H_

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "remote/row_computer.h"
#include "wire/handshake.h"

namespace remoe {

class Canary : public RowComputer {
 public:
  explicit Canary(RowComputer* computer) : computer_(computer) {}
  // Call before the first Check(), with the sums of what was loaded.
  void Serve(std::vector<ServedExpert> served) { served_ = std::move(served); }

  // kCorrupt where bytes or bits are others than they were.
  Status Check();

  Result<Learned> Learn(int layer, const std::string& recipe) override;
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    return computer_->Compute(recipe, expert, n_rows, rows, out);
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    return computer_->Sums(layer, expert);
  }
  Status CopyWeights(int layer, uint16_t expert, int matrix, uint64_t begin, size_t n,
                     uint8_t* dest) override {
    return computer_->CopyWeights(layer, expert, matrix, begin, n, dest);
  }
  uint64_t MatrixBytes(int layer, int matrix) const override {
    return computer_->MatrixBytes(layer, matrix);
  }
  std::string Name(int layer, int expert) const override { return computer_->Name(layer, expert); }

 private:
  struct Row {
    int layer = 0;
    int recipe = 0;
    uint16_t expert = 0;
    int64_t n_in = 0;
    std::vector<float> first;  // its answer; empty until it was computed once
  };
  Status CheckSum();
  Status CheckRow();

  RowComputer* const computer_;
  std::vector<ServedExpert> served_;
  std::mutex mutex_;  // of these
  size_t next_expert_ = 0, next_row_ = 0;
  std::map<std::string, size_t> kinds_;
  std::vector<Row> rows_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_CANARY_H_

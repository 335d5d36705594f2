// PairRunner: a layer's expert FFN as a list of (token, expert) pairs, computed in groups.
//
// From eight tokens on, ggml's CPU kernels multiply an expert's K-quants in tiles, which round in
// another order; so all pairs of one expert run in one group, and beside whom does not matter. A
// group gathers its pairs' inputs, converted once for each token, runs a copy of the graph piece in
// which each pair is a token with one expert, and scatters the results to where the graph wants
// them. So residents compute while the missing are read. One token's pair can also be started
// before its expert is complete: everything up to down needs no down, and is kept.
//
// Scratch is bounded: a group takes at most kScratchBytes, or one expert's pairs. One thread.
#ifndef REMOE_DEVICE_COMPUTE_PAIR_RUNNER_H_
#define REMOE_DEVICE_COMPUTE_PAIR_RUNNER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "device/graph/weight_buffer.h"

namespace remoe {

struct Pair {
  int32_t token = 0;
  int32_t k = 0;  // which of the token's experts
  int32_t expert = 0;
  int32_t slot = 0;
};

class PairRunner {
 public:
  static constexpr size_t kScratchBytes = 12u << 20;

  explicit PairRunner(ggml_backend_t backend) : backend_(backend) {}
  virtual ~PairRunner() = default;

  // Takes nodes [begin, end) of a graph, none of them computed yet. RETURNS: whether they are an
  // expert FFN that can be run by pairs; when not, nothing else may be called.
  virtual bool Prepare(ggml_tensor** nodes, int begin, int end);
  // Whether some of the prepared products are faster by pairs, also with every expert there: one
  // token's, by RowProducts.
  bool by_rows() const { return by_rows_; }
  // Whether the prepared piece is one token's and has two stages.
  bool can_start() const { return can_start_; }
  // Runs the first stage of the given pairs, for Run to go on from. REQUIRES: can_start(); of every
  // slot all but down is filled.
  ggml_status Start(const Pair* pairs, int n);
  // Runs the given pairs. REQUIRES: Prepare returned true; every slot is filled; they hold all
  // pairs of each expert that is among them, side by side, in the order of the tokens.
  ggml_status Run(const Pair* pairs, int n);

  // Whether the prepared piece takes one row of floats for each token and gives one for each pair,
  // so that its pairs can be computed elsewhere.
  bool can_be_sent() const;
  // REQUIRES, of all five: can_be_sent().
  int64_t n_in() const;
  int64_t n_out() const;
  void CopyInput(int token, float* row) const;
  // Appends the piece as bytes of an FfnRecipe; nothing where it is not the whole FFN of a layer.
  void Describe(std::string* recipe) const;
  // What a pair gives is nothing: zeros. REQUIRES: Prepare returned true.
  void GiveNothing(int token, int k);
  // What a pair gives was computed elsewhere.
  void TakeResult(const Pair& pair, const float* row);

 protected:
  // Rows that come from outside the piece, one per token, or one per token and expert.
  struct External {
    ggml_tensor* tensor = nullptr;
    ggml_type type = GGML_TYPE_F32;  // that its rows are gathered in
    const uint8_t* data = nullptr;   // floats, in place or saved
    bool converted = false;          // converted_ has the rows
    size_t row_bytes() const { return ggml_row_size(type, tensor->ne[0]); }
  };
  struct Step {
    ggml_tensor* node = nullptr;
    const ggml_tensor* weights = nullptr;  // of a product, in the slots
    bool result = false;                   // no other step takes it: the graph wants it
    // Steps that make src[0] and src[1] (of products src[1] alone); -1: it comes from outside.
    int operand[2] = {-1, -1};
    int external = -1;     // index of it
    bool by_rows = false;  // a product for RowProducts
    bool second = false;   // of the second stage
    bool kept = false;     // of the first, and the second takes it
  };
  enum class Stage { kBoth, kFirst, kSecond };
  static bool In(const Step& step, Stage stage) {
    return stage == Stage::kBoth || step.second == (stage == Stage::kSecond);
  }
  // What a piece is made of. `by_rows`: RowProducts, and gathering in the format of the CPU's dot
  // products, may be used.
  bool Collect(ggml_tensor** nodes, int begin, int end, bool by_rows);
  // The slots seen as that weight tensor.
  virtual const ggml_tensor& ViewOf(const TensorOrigin& origin) const;
  // Runs pairs in one graph. Pairs of one expert are side by side.
  virtual ggml_status RunGroup(const Pair* pairs, int n, Stage stage);

  ggml_backend_t backend_;
  std::vector<Step> steps_;
  std::vector<External> externals_;
  const ggml_tensor* ids_ = nullptr;
  std::vector<uint8_t> graph_memory_;

 private:
  const Step* OnlyResult() const;
  int StepOf(const ggml_tensor* tensor) const;
  bool IsHalf(const ggml_tensor* view) const;
  int FindExternal(ggml_tensor* tensor, ggml_type type);
  void FindStages();
  void SaveInputs();
  void Convert(size_t external);
  // A step's output for one token's k-th expert, kept between the stages.
  uint8_t* Kept(size_t step, int k) {
    return &kept_[(step * static_cast<size_t>(ids_->ne[0]) + k) * kept_bytes_];
  }
  // Runs pairs of which nothing was started, in groups.
  ggml_status RunWhole(const Pair* pairs, int n);

  std::vector<std::vector<uint8_t>> saved_, converted_;  // by external
  bool by_rows_ = false;
  bool can_start_ = false;
  std::vector<bool> started_;  // by k
  size_t kept_bytes_ = 0;      // of the longest output that is kept
  std::vector<uint8_t> kept_;
  size_t pair_bytes_ = 0;
  std::vector<uint8_t> scratch_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_PAIR_RUNNER_H_

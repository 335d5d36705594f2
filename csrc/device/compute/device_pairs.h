// DevicePairs: a layer's expert FFN by pairs, on a GPU, whose memory has activations and slots.
//
// What PairRunner does on the CPU by moving rows, this does by operations of the graph: rows are
// gathered from the activations, and set where llama.cpp's graph wants them, without leaving the
// device. One token's pairs lie side by side as llama.cpp has them, so that kernels take the shapes
// that they take for the whole token; a batch's pairs are each a token with one expert.
//
// Owned by one Executor; one thread.
#ifndef REMOE_DEVICE_COMPUTE_DEVICE_PAIRS_H_
#define REMOE_DEVICE_COMPUTE_DEVICE_PAIRS_H_

#include <vector>

#include "device/compute/pair_runner.h"
#include "ggml-alloc.h"

namespace remoe {

class DevicePairs : public PairRunner {
 public:
  explicit DevicePairs(ggml_backend_t gpu);
  ~DevicePairs() override;

  bool Prepare(ggml_tensor** nodes, int begin, int end) override;

 protected:
  ggml_status RunGroup(const Pair* pairs, int n, Stage stage) override;

 private:
  // What the graph of a group takes from outside, filled once its memory is there.
  struct Indices {
    ggml_tensor* slots = nullptr;
    ggml_tensor* experts = nullptr;
    ggml_tensor* tokens = nullptr;  // rows of an external that has one for each token
    ggml_tensor* rows = nullptr;    // rows of one that has one for each pair: token * k + which
    ggml_tensor* places = nullptr;  // the same, of a result
    std::vector<int32_t> slot, expert, token, row;  // by pair
    std::vector<int64_t> place;
  };
  Indices MakeIndices(ggml_context* context, const Pair* pairs, int n) const;
  ggml_tensor* Gather(ggml_context* context, size_t external, const Indices& indices, int n) const;
  ggml_tensor* Rows(ggml_context* context, int64_t ne0, int64_t n) const;
  bool Overwritten(const ggml_tensor* tensor) const;
  bool KeepInputs();
  bool batch() const { return ids_->ne[1] > 1; }

  ggml_gallocr_t memory_;                 // of a group's graph
  ggml_backend_buffer_t kept_ = nullptr;  // inputs that a result overwrites
  std::vector<ggml_tensor> inputs_;       // by external: it, or what was kept of it
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_DEVICE_PAIRS_H_

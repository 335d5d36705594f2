// RowProducts: what one token's experts give, row by row, by ggml's own dot product: the bits of
// its product with chosen matrices, faster.
//
// One token's products are bound by how fast weights come from memory. ggml's kernels leave that to
// the processor, which follows a row but not over the end of a page; here the rows to come are
// asked for ahead. They run as an operation of a graph, on the CPU backend's threads.
#ifndef REMOE_DEVICE_COMPUTE_ROW_PRODUCTS_H_
#define REMOE_DEVICE_COMPUTE_ROW_PRODUCTS_H_

#include <atomic>
#include <cstdint>

#include "device/graph/weight_buffer.h"

namespace remoe {

class RowProducts {
 public:
  // Whether those weights' products are such dot products: not where they were rearranged.
  static bool Fits(const ggml_tensor& weights);

  // weights: [ne0, rows, slots]; slots: the matrix of each pair. Both outlive the graph.
  RowProducts(const ggml_tensor& weights, const int32_t* slots)
      : weights_(weights), slots_(slots) {}

  // RETURNS: [rows, 1, n], for input [ne0, 1, n] of n pairs, floats or in the ActivationType.
  // `this` outlives the graph, and serves one computation.
  ggml_tensor* Append(ggml_context* context, ggml_tensor* input);

 private:
  static void Compute(ggml_tensor* result, int thread, int n_threads, void* self);

  const ggml_tensor& weights_;
  const int32_t* slots_;
  std::atomic<int64_t> next_{0};  // chunk
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_ROW_PRODUCTS_H_

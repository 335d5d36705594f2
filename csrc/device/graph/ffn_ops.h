// Which operations of a graph are ours: products with streamed weights, and what llama.cpp puts
// between them (activations, gating, clamps, biases added by expert id).
//
// One table says what each operation is. The device claims by it, and the pair runner runs by it, so
// that none is claimed that cannot be run. Pure functions of the graph; any thread.
#ifndef REMOE_DEVICE_GRAPH_FFN_OPS_H_
#define REMOE_DEVICE_GRAPH_FFN_OPS_H_

#include <cstdint>

#include "device/graph/weight_buffer.h"

namespace remoe {

// What an operation within an expert FFN is, from one table: who claims operations and who runs
// them by pairs agree by it.
enum class FfnOp : uint8_t {
  kOther,        // not ours
  kProduct,      // a product of chosen matrices
  kView,         // computes nothing
  kExpertBias,   // adds a row by expert id
  kElementwise,  // of one operand, or of two of one shape
};
FfnOp FfnOpOf(const ggml_tensor* op);

// The origin of the weights when `op` is a product with streamed experts, else null.
const TensorOrigin* ExpertProduct(const ggml_tensor* op);

// Whether the device runs `op`: an expert product, or an element-wise step whose every operand
// descends from the up and gate products, or an expert-bias addition to any of the products.
bool IsExpertOp(const ggml_tensor* op);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_FFN_OPS_H_

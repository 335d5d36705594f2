// Which operations of a graph are ours: products with streamed weights, and what llama.cpp puts
// between them (activations, gating, clamps, biases added by expert id). Pure functions of the
// graph.
#ifndef REMOE_DEVICE_FFN_OPS_H_
#define REMOE_DEVICE_FFN_OPS_H_

#include "device/device.h"

namespace remoe {

// The origin of the weights when `op` is a product with streamed experts, else null.
const TensorOrigin* ExpertProduct(const ggml_tensor* op);

// Whether the device runs `op`: an expert product, or an element-wise step whose every operand
// descends from the up and gate products, or an expert-bias addition to any of the products.
bool IsExpertOp(const ggml_tensor* op);

}  // namespace remoe

#endif  // REMOE_DEVICE_FFN_OPS_H_

// The storage device of models whose experts are computed on a GPU.
//
// It claims what the registered device claims. Its backends compute on the GPU, and its buffer type
// is the GPU's, so that activations stay there. Never registered, so that no other model's contexts
// see it: whoever loads names it to llama.cpp, before the GPU itself. Any thread.
#ifndef REMOE_DEVICE_GRAPH_GPU_DEVICE_H_
#define REMOE_DEVICE_GRAPH_GPU_DEVICE_H_

#include <memory>

#include "device/graph/ggml_abi.h"

namespace remoe {

// Outlives the models and contexts made with it.
std::unique_ptr<ggml_backend_device> MakeDeviceOn(ggml_backend_dev_t gpu);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_GPU_DEVICE_H_

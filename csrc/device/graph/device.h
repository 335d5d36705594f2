// Storage as a ggml backend device.
//
// One device per process, registered once, from any thread, of type ACCEL, so that every llama_context takes it in
// by itself. It claims the matrix products whose weights lie in a StorageBuffer and the small
// element-wise operations between them, and nothing else: a layer's whole expert FFN becomes one
// piece of the graph that is ours, and the rest of the model runs as it always does.
//
// Each streamed model has a buffer type of its own (its address is what `tensor_buft_overrides`
// names), through which a graph's weights lead back to that model.
#ifndef REMOE_DEVICE_GRAPH_DEVICE_H_
#define REMOE_DEVICE_GRAPH_DEVICE_H_

#include <memory>

#include "base/status.h"
#include "device/graph/ggml_abi.h"

namespace remoe {

class StreamedModel;

// Where a weight tensor of ours comes from; its `extra` points to one.
struct TensorOrigin {
  StreamedModel* model = nullptr;
  int layer = 0;   // index into the model's expert layers
  int matrix = 0;  // index into that layer's matrices
};

// Registers the device. Idempotent; kNotSupported when the ABI is another one.
Status RegisterDevice();

// A buffer type whose tensors take no memory and belong to `model`, which outlives it.
std::unique_ptr<ggml_backend_buffer_type> MakeBufferType(StreamedModel* model);

// The origin of a weight tensor in one of our buffers, null for any other tensor.
const TensorOrigin* OriginOf(const ggml_tensor* tensor);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_DEVICE_H_

// Storage as a ggml backend device.
//
// One per process, of type ACCEL, so that every llama_context takes it in by itself. It claims the
// matrix products whose weights lie in a weight buffer and the small element-wise operations between
// them, and nothing else: a layer's whole expert FFN becomes one piece of the graph that is ours,
// and the rest of the model runs as it always does.
//
// The engine registers it, and names a buffer type for each of its models. A plug-in lists it with
// a buffer type that llama.cpp then offers every weight. Any thread.
#ifndef REMOE_DEVICE_GRAPH_DEVICE_H_
#define REMOE_DEVICE_GRAPH_DEVICE_H_

#include "base/status.h"
#include "device/graph/ggml_abi.h"
#include "device/graph/weight_buffer.h"

namespace remoe {

extern const char kDeviceName[];

// The device that weight buffers belong to and backends run on. Its own buffer type is the CPU's:
// activations stay where the CPU backend has them.
ggml_backend_dev_t StorageDevice();

// Registers the device for the engine. Idempotent; kNotSupported when the ABI is another one.
Status RegisterDevice();

// The registry that lists the device with `weights` as its buffer type, or, for null, with the
// CPU's. Registers nothing; the first call decides. `weights` lives as long as the process.
ggml_backend_reg_t StorageRegistry(ggml_backend_buffer_type_t weights);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_DEVICE_H_

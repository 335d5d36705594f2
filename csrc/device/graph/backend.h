// The backend (stream) of the storage device: one per llama_context, used by its thread.
//
// It runs its pieces of the graph on a private backend of the CPU, or of the GPU that its device is
// for, with weights taken from the slab. The pieces are done when graph_compute returns.
// Nothing throws out of it; failures are kept in the model they belong to and told to llama.cpp as
// a status.
#ifndef REMOE_DEVICE_GRAPH_BACKEND_H_
#define REMOE_DEVICE_GRAPH_BACKEND_H_

#include "device/graph/ggml_abi.h"

namespace remoe {

// `gpu`: that computes; null for the CPU. RETURNS: null where it cannot be had.
ggml_backend_t MakeBackend(ggml_backend_dev_t device, ggml_backend_dev_t gpu = nullptr);

// Whether a backend can have the scheduler keep what routers said until experts run: older builds of
// ggml have no such way.
bool ScoresAreKept();

// The functions that llama.cpp looks for by name; null for those we lack.
void* BackendProcAddress(const char* name);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_BACKEND_H_

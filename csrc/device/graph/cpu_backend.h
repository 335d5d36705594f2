// The CPU backend's own functions, found through its registry.
//
// A program may have linked the backend or loaded one of several variants of it, out of the reach of
// a linker; so nothing here is linked. Public functions are asked of the registry by name, and those
// that it does not know of the library in which the registry lies.
//
// REQUIRES: a CPU backend is registered, which CheckAbi() has seen. Thread-safe.
#ifndef REMOE_DEVICE_GRAPH_CPU_BACKEND_H_
#define REMOE_DEVICE_GRAPH_CPU_BACKEND_H_

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace remoe::cpu {

ggml_backend_reg_t Registry();
// Whether every function below was found in this process.
bool Complete();

// A backend of our own, or null.
ggml_backend_t NewBackend();
void SetThreads(ggml_backend_t cpu, int n_threads);
void SetAbort(ggml_backend_t cpu, ggml_abort_callback callback, void* data);
const ggml_type_traits_cpu* TypeTraits(ggml_type type);

// The pool of threads that the program computes with, as it was told last on this thread; null for
// none. A backend that shares it computes without threads of its own.
void SetProgramPool(ggml_threadpool_t pool);
void ShareProgramPool(ggml_backend_t cpu);

}  // namespace remoe::cpu

#endif  // REMOE_DEVICE_GRAPH_CPU_BACKEND_H_

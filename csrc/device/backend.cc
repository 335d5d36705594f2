#include "device/backend.h"

#include <cstring>
#include <memory>

#include "device/executor.h"
#include "ggml-cpu.h"

namespace remoe {

namespace {

struct Context {
  explicit Context(ggml_backend_t cpu) : cpu(cpu), executor(cpu) {}
  ~Context() { ggml_backend_free(cpu); }
  ggml_backend_t cpu;
  Executor executor;
};

Context* ContextOf(ggml_backend_t backend) {
  return static_cast<Context*>(backend->context);
}

const char* Name(ggml_backend_t) {
  return "Storage";
}

void Free(ggml_backend_t backend) {
  delete ContextOf(backend);
  delete backend;
}

ggml_status Compute(ggml_backend_t backend, ggml_cgraph* graph) {
  return ContextOf(backend)->executor.Run(graph);
}

void SetThreads(ggml_backend_t backend, int n_threads) {
  ggml_backend_cpu_set_n_threads(ContextOf(backend)->cpu, n_threads);
}

void SetAbort(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
  ggml_backend_cpu_set_abort_callback(ContextOf(backend)->cpu, callback, data);
}

ggml_guid_t Guid() {
  static ggml_guid guid = {0x72, 0x65, 0x6d, 0x6f, 0x65, 0x2d, 0x65, 0x64,
                           0x67, 0x65, 0x2d, 0x73, 0x74, 0x6f, 0x72, 0x65};
  return &guid;
}

}  // namespace

ggml_backend_t MakeBackend(ggml_backend_dev_t device) {
  ggml_backend_t cpu = ggml_backend_cpu_init();
  if (cpu == nullptr) return nullptr;
  ggml_backend_i functions{};
  functions.get_name = Name;
  functions.free = Free;
  functions.graph_compute = Compute;
  return new ggml_backend{Guid(), functions, device, new Context(cpu)};
}

void* BackendProcAddress(const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
    return reinterpret_cast<void*>(SetThreads);
  }
  if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) {
    return reinterpret_cast<void*>(SetAbort);
  }
  return nullptr;
}

}  // namespace remoe

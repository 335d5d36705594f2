#include "device/graph/backend.h"

#include <cstring>
#include <memory>
#include <type_traits>

#include "device/compute/executor.h"
#include "device/graph/cpu_backend.h"
#include "device/graph/ffn_ops.h"
#include "device/graph/router_scores.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

// Whether a backend can say that tensors outside its piece are still needed: see Optimize().
constexpr bool kScoresAreKept = !std::is_same_v<decltype(ggml_backend_i::graph_optimize),
                                                void (*)(ggml_backend_t, ggml_cgraph*)>;

struct Context {
  Context(ggml_backend_t cpu, ggml_backend_t gpu)
      : cpu(cpu), gpu(gpu), executor(std::make_unique<Executor>(cpu, kScoresAreKept, gpu)) {}
  ~Context() {
    executor.reset();
    if (gpu != nullptr) ggml_backend_free(gpu);
    ggml_backend_free(cpu);
  }
  ggml_backend_t cpu, gpu;  // gpu: null where the CPU computes
  std::unique_ptr<Executor> executor;
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
  return ContextOf(backend)->executor->Run(graph);
}

ggml_status ComputeLossy(ggml_backend_t backend, ggml_cgraph* graph) {
  return ContextOf(backend)->executor->RunLossy(graph);
}

// The scheduler's allocator would reuse the router's scores before the FFN runs, for the weights of
// the experts' sum: each FFN says that it still needs them. And where experts may be swapped or skipped,
// another function runs the pieces, so that nothing is asked of others in the path of a token.
template <typename Params>
void Optimize(ggml_backend_t backend, ggml_cgraph* graph, Params* params) {
  const int n = ggml_graph_n_nodes(graph);
  const ggml_tensor* last = nullptr;
  GateNotes* gates = nullptr;
  for (int i = 0; i < n; i++) {
    ggml_tensor* node = ggml_graph_node(graph, i);
    if (ExpertProduct(node) == nullptr) continue;
    StreamedModel* model = OriginOf(node->src[0])->model;
    gates = model->gates();
    if (gates != nullptr) {
      const GateNote* gate = gates->Find(node->src[2]);
      if (gate != nullptr) params->add_alloc_dep(params->user_data, gate->chain.values, node);
    }
    const RouterNote* note = model->router_notes().Find(node);
    ggml_tensor* scores = note != nullptr ? note->logits : RouterScores(node);
    if (scores == nullptr || scores == last) continue;
    params->add_alloc_dep(params->user_data, scores, node);
    last = scores;
  }
  backend->iface.graph_compute = gates != nullptr ? ComputeLossy : Compute;
}

// Older builds of ggml let nobody say so.
[[maybe_unused]] void Optimize(ggml_backend_t, ggml_cgraph*) {}

void SetThreads(ggml_backend_t backend, int n_threads) {
  cpu::ShareProgramPool(ContextOf(backend)->cpu);
  cpu::SetThreads(ContextOf(backend)->cpu, n_threads);
}

void SetAbort(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
  cpu::SetAbort(ContextOf(backend)->cpu, callback, data);
}

ggml_guid_t Guid() {
  static ggml_guid guid = {0x72, 0x65, 0x6d, 0x6f, 0x65, 0x2d, 0x65, 0x64,
                           0x67, 0x65, 0x2d, 0x73, 0x74, 0x6f, 0x72, 0x65};
  return &guid;
}

}  // namespace

bool ScoresAreKept() {
  return kScoresAreKept;
}

ggml_backend_t MakeBackend(ggml_backend_dev_t device, ggml_backend_dev_t gpu_device) {
  ggml_backend_t cpu = cpu::NewBackend();
  if (cpu == nullptr) return nullptr;
  ggml_backend_t gpu = nullptr;
  if (gpu_device != nullptr) {
    gpu = ggml_backend_dev_init(gpu_device, nullptr);
    if (gpu == nullptr) {
      ggml_backend_free(cpu);
      return nullptr;
    }
  }
  ggml_backend_i functions{};
  functions.get_name = Name;
  functions.free = Free;
  functions.graph_compute = Compute;
  functions.graph_optimize = Optimize;
  return new ggml_backend{Guid(), functions, device, new Context(cpu, gpu)};
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

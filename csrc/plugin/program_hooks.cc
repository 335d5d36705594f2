#include "plugin/program_hooks.h"

#include <cstring>

#include "device/graph/cpu_backend.h"
#include "device/graph/ggml_abi.h"

namespace remoe::plugin {

namespace {

void* (*g_get_proc_address)(ggml_backend_reg_t, const char*) = nullptr;

struct Load {
  bool has_experts = false;
  bool repacks = false;
};
thread_local Load t_load;

bool IsNuma() {
  const auto real =
      reinterpret_cast<bool (*)()>(g_get_proc_address(cpu::Registry(), "ggml_backend_cpu_is_numa"));
  return t_load.has_experts || (real != nullptr && real());
}

void SetThreadpool(ggml_backend_t backend, ggml_threadpool_t pool) {
  const auto real = reinterpret_cast<void (*)(ggml_backend_t, ggml_threadpool_t)>(
      g_get_proc_address(cpu::Registry(), "ggml_backend_cpu_set_threadpool"));
  cpu::SetProgramPool(pool);
  real(backend, pool);
}

void* GetProcAddress(ggml_backend_reg_t registry, const char* name) {
  void* real = g_get_proc_address(registry, name);
  if (real == nullptr) return nullptr;
  if (std::strcmp(name, "ggml_backend_cpu_is_numa") == 0) return reinterpret_cast<void*>(IsNuma);
  if (std::strcmp(name, "ggml_backend_cpu_set_threadpool") == 0) {
    return reinterpret_cast<void*>(SetThreadpool);
  }
  if (std::strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) t_load.repacks = true;
  return real;
}

}  // namespace

void HookCpuRegistry() {
  const ggml_backend_reg_t registry = cpu::Registry();
  if (registry->iface.get_proc_address == GetProcAddress) return;
  g_get_proc_address = registry->iface.get_proc_address;
  registry->iface.get_proc_address = GetProcAddress;
}

void LoadBegins() {
  t_load = Load();
}

void LoadHasExperts() {
  t_load.has_experts = true;
}

LoadLearned LoadIsPlaced() {
  const LoadLearned learned{t_load.repacks};
  t_load = Load();
  return learned;
}

}  // namespace remoe::plugin

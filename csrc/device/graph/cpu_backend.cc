#include "device/graph/cpu_backend.h"

#include <dlfcn.h>

#include "device/graph/ggml_abi.h"

namespace remoe::cpu {

namespace {

struct Functions {
  Functions() {
    const ggml_backend_reg_t registry = Registry();
    if (registry == nullptr) return;
    const auto named = [registry](const char* name) {
      return ggml_backend_reg_get_proc_address(registry, name);
    };
    set_threads =
        reinterpret_cast<ggml_backend_set_n_threads_t>(named("ggml_backend_set_n_threads"));
    set_abort = reinterpret_cast<ggml_backend_set_abort_callback_t>(
        named("ggml_backend_set_abort_callback"));
    set_pool = reinterpret_cast<decltype(set_pool)>(named("ggml_backend_cpu_set_threadpool"));
    // The registry's functions lie in the backend's library, whichever that is.
    Dl_info found{};
    if (dladdr(reinterpret_cast<void*>(registry->iface.get_name), &found) == 0) return;
    void* library = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return;
    traits = reinterpret_cast<decltype(traits)>(dlsym(library, "ggml_get_type_traits_cpu"));
    dlclose(library);  // the program holds it
  }
  ggml_backend_set_n_threads_t set_threads = nullptr;
  ggml_backend_set_abort_callback_t set_abort = nullptr;
  void (*set_pool)(ggml_backend_t, ggml_threadpool_t) = nullptr;
  const ggml_type_traits_cpu* (*traits)(ggml_type) = nullptr;
};

const Functions& Found() {
  static const Functions functions;
  return functions;
}

thread_local ggml_threadpool_t t_program_pool = nullptr;

}  // namespace

ggml_backend_reg_t Registry() {
  const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  return cpu != nullptr ? ggml_backend_dev_backend_reg(cpu) : nullptr;
}

bool Complete() {
  const Functions& found = Found();
  return found.set_threads != nullptr && found.set_abort != nullptr && found.traits != nullptr;
}

ggml_backend_t NewBackend() {
  return ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
}

void SetThreads(ggml_backend_t cpu, int n_threads) {
  Found().set_threads(cpu, n_threads);
}

void SetAbort(ggml_backend_t cpu, ggml_abort_callback callback, void* data) {
  Found().set_abort(cpu, callback, data);
}

const ggml_type_traits_cpu* TypeTraits(ggml_type type) {
  return Found().traits(type);
}

void SetProgramPool(ggml_threadpool_t pool) {
  t_program_pool = pool;
}

void ShareProgramPool(ggml_backend_t cpu) {
  if (Found().set_pool != nullptr) Found().set_pool(cpu, t_program_pool);
}

}  // namespace remoe::cpu

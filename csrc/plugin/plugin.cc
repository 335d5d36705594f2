// The plug-in's one exported function: entry/entry.c calls it once it has found the build that fits.
#include <dlfcn.h>

#include <memory>

#include "device/graph/device.h"
#include "device/graph/ggml_abi.h"
#include "plugin/log.h"
#include "plugin/mapping_loading.h"
#include "plugin/program_hooks.h"
#include "plugin/settings.h"

namespace remoe::plugin {

namespace {

const abi::Wanted kWanted = {
    REMOE_GGML_VERSION, REMOE_GGML_COMMIT,
    "remoe-edge plugin build --llama-cpp DIR, where DIR is the source tree "
    "of this program's llama.cpp"};

// Functions of ours are in the program's tables from now on, so that this library must stay, even
// where the program takes its backends down.
void StayLoaded() {
  Dl_info own{};
  if (dladdr(reinterpret_cast<void*>(&StayLoaded), &own) != 0) {
    dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  }
}

ggml_backend_reg_t Start() {
  const Status status = abi::CheckAbi(kWanted);
  if (!status.ok()) {
    LogError(status.message());
    return nullptr;
  }
  if (!GetSettings().ok()) LogError(GetSettings().status().message());
  StayLoaded();
  HookCpuRegistry();
  // Never destroyed: models may outlive what a program destroys at its end.
  auto* loading = new MappingLoading(GetSettings());
  return StorageRegistry(MakeBufferType(StorageDevice(), loading).release());
}

}  // namespace

}  // namespace remoe::plugin

// May be called several times. The registry registers nothing itself: its caller, the loader, does.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t remoe_plugin_init() {
  static const ggml_backend_reg_t registry = remoe::plugin::Start();
  return registry;
}

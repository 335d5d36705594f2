#include "device/graph/device.h"

#include <mutex>

#include "device/graph/backend.h"
#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

const char kDeviceName[] = "Storage";

namespace {

constexpr char kDescription[] = "experts streamed from storage";

const char* DeviceName(ggml_backend_dev_t) {
  return kDeviceName;
}
const char* DeviceDescription(ggml_backend_dev_t) {
  return kDescription;
}
void DeviceMemory(ggml_backend_dev_t, size_t* free, size_t* total) {
  *free = *total = 0;
}
enum ggml_backend_dev_type DeviceType(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void DeviceProps(ggml_backend_dev_t, ggml_backend_dev_props* props) {
  *props = {};
  props->name = kDeviceName;
  props->description = kDescription;
  props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

ggml_backend_t InitBackend(ggml_backend_dev_t, const char*) {
  return MakeBackend(StorageDevice());
}

ggml_backend_buffer_type_t CpuBufferType(ggml_backend_dev_t) {
  return ggml_backend_cpu_buffer_type();
}
ggml_backend_buffer_type_t ListedBufferType(ggml_backend_dev_t device) {
  auto* weights = static_cast<ggml_backend_buffer_type_t>(device->context);
  LoadingOf(weights)->Listed();
  return weights;
}

void NoteGate(const ggml_tensor* node, const GateChain& chain) {
  const TensorOrigin* origin = OriginOf(chain.product->src[0]);
  if (origin->model->gates() == nullptr) return;
  try {
    origin->model->gates()->Note(node, chain, origin->layer);
  } catch (const std::bad_alloc&) {
    // Without a note, the step will refuse.
  }
}

// Asked of every node of a graph before any of them runs: the time to learn where routers are.
bool SupportsOp(ggml_backend_dev_t, const ggml_tensor* op) {
  const bool ours = IsExpertOp(op);
  if (const TensorOrigin* origin = ExpertProduct(op)) {
    try {
      origin->model->Learn(*origin, op);
    } catch (const std::bad_alloc&) {
      // Nothing may unwind through ggml; the step itself will say that there is no memory.
    }
  } else if (GateChain chain; WeighsExperts(op, &chain)) {
    NoteGate(op, chain);
  } else if (ours && op->op == GGML_OP_MUL_MAT_ID) {
    LoadingOf(op->src[0]->buffer->buft)->Claimed();
  } else if (op->op == GGML_OP_MUL_MAT_ID) {
    GateNotes::NoteOthers(op);
  }
  return ours;
}

bool SupportsBufferType(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  return type->device == StorageDevice() || ggml_backend_buft_is_host(type);
}

const char* RegistryName(ggml_backend_reg_t) {
  return kDeviceName;
}
size_t DeviceCount(ggml_backend_reg_t) {
  return 1;
}
ggml_backend_dev_t GetDevice(ggml_backend_reg_t registry, size_t) {
  return static_cast<ggml_backend_dev_t>(registry->context);
}
void* GetProcAddress(ggml_backend_reg_t, const char* name) {
  return BackendProcAddress(name);
}

// `device`: the one that backends have, unlisted. `listed`: the one that llama.cpp finds; it may
// offer another buffer type for weights than backends have for activations.
struct Registered {
  Registered() {
    device.iface.get_name = DeviceName;
    device.iface.get_description = DeviceDescription;
    device.iface.get_memory = DeviceMemory;
    device.iface.get_type = DeviceType;
    device.iface.get_props = DeviceProps;
    device.iface.init_backend = InitBackend;
    device.iface.get_buffer_type = CpuBufferType;
    device.iface.supports_op = SupportsOp;
    device.iface.supports_buft = SupportsBufferType;
    device.reg = &registry;
    registry.api_version = abi::kBackendApiVersion;
    registry.iface.get_name = RegistryName;
    registry.iface.get_device_count = DeviceCount;
    registry.iface.get_device = GetDevice;
    registry.iface.get_proc_address = GetProcAddress;
    registry.context = &listed;
    listed = device;
  }
  ggml_backend_reg registry{};
  ggml_backend_device device{}, listed{};
};

Registered& TheDevice() {
  static Registered registered;
  return registered;
}

}  // namespace

ggml_backend_dev_t StorageDevice() {
  return &TheDevice().device;
}

ggml_backend_reg_t StorageRegistry(ggml_backend_buffer_type_t weights) {
  static std::once_flag once;
  std::call_once(once, [weights] {
    if (weights == nullptr) return;
    TheDevice().listed.iface.get_buffer_type = ListedBufferType;
    TheDevice().listed.context = weights;
  });
  return &TheDevice().registry;
}

Status RegisterDevice() {
  static std::once_flag once;
  static Status status;
  std::call_once(once, [] {
    status = abi::CheckAbi(abi::kPinned);
    if (status.ok()) ggml_backend_register(StorageRegistry(nullptr));
  });
  return status;
}

}  // namespace remoe

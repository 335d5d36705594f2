#include "device/graph/device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include "device/graph/backend.h"
#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr char kName[] = "Storage";

ggml_backend_device g_device;
ggml_backend_reg g_registry;

// --- buffers: addresses without memory behind them ---

// Tensors must have distinct addresses, so each takes this many bytes of an inaccessible mapping: a
// read of expert weights that went past this device would fault instead of computing nonsense.
constexpr size_t kTensorBytes = 64;

void FreeBuffer(ggml_backend_buffer_t buffer) {
  munmap(buffer->context, buffer->size);
}

void* BufferBase(ggml_backend_buffer_t buffer) {
  return buffer->context;
}

ggml_status InitTensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  auto* model = static_cast<StreamedModel*>(buffer->buft->context);
  tensor->extra = model->FindOrigin(tensor->name);
  return tensor->extra != nullptr ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}

// Loading "fills" the experts with bytes that were never read.
void SetTensor(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t) {}
void MemsetTensor(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t) {}
// llama.cpp asks for them when it saves a model: they are read then. The interface knows no failure;
// so the model keeps it, and no weight is a plausible one: all bits set are no number in any format
// that has such.
void GetTensor(ggml_backend_buffer_t, const ggml_tensor* tensor, void* data, size_t offset,
               size_t size) {
  const auto* origin = static_cast<const TensorOrigin*>(tensor->extra);
  Status status(Code::kOutOfMemory, "no memory to read it through");
  try {
    status = origin->model->ReadTensor(*origin, offset, size, static_cast<uint8_t*>(data));
  } catch (const std::bad_alloc&) {
    // Nothing may unwind through ggml.
  }
  if (status.ok()) return;
  std::memset(data, 0xff, size);
  origin->model->failure().Keep(status);
  std::fprintf(stderr, "remoe-edge: %s could not be read: %s\n", tensor->name,
               status.message().c_str());
}
void ClearBuffer(ggml_backend_buffer_t, uint8_t) {}

const char* BufferTypeName(ggml_backend_buffer_type_t) {
  return kName;
}

ggml_backend_buffer_t AllocBuffer(ggml_backend_buffer_type_t type, size_t size) {
  const size_t mapped = size == 0 ? kTensorBytes : size;
  void* base = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  ggml_backend_buffer_i functions{};
  functions.free_buffer = FreeBuffer;
  functions.get_base = BufferBase;
  functions.init_tensor = InitTensor;
  functions.memset_tensor = MemsetTensor;
  functions.set_tensor = SetTensor;
  functions.get_tensor = GetTensor;
  functions.clear = ClearBuffer;
  return ggml_backend_buffer_init(type, functions, base, mapped);
}

size_t Alignment(ggml_backend_buffer_type_t) {
  return kTensorBytes;
}
size_t AllocSize(ggml_backend_buffer_type_t, const ggml_tensor*) {
  return kTensorBytes;
}
// While loading, llama.cpp stages what goes into other than host memory through a buffer of the
// tensor's whole size and touches all of it. As "host memory", a tensor is read in place, of which
// the virtual file makes nothing. Afterwards the truth: nobody but this device can use these
// tensors.
bool IsHost(ggml_backend_buffer_type_t type) {
  return static_cast<const StreamedModel*>(type->context)->loading();
}

// --- the device ---

const char* DeviceName(ggml_backend_dev_t) {
  return kName;
}
const char* DeviceDescription(ggml_backend_dev_t) {
  return "experts streamed from storage";
}
void DeviceMemory(ggml_backend_dev_t, size_t* free, size_t* total) {
  *free = *total = 0;
}
enum ggml_backend_dev_type DeviceType(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void DeviceProps(ggml_backend_dev_t, ggml_backend_dev_props* props) {
  *props = {};
  props->name = kName;
  props->description = "experts streamed from storage";
  props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

ggml_backend_t InitBackend(ggml_backend_dev_t device, const char*) {
  return MakeBackend(device);
}

// Activations stay where the CPU backend has them.
ggml_backend_buffer_type_t DeviceBufferType(ggml_backend_dev_t) {
  return ggml_backend_cpu_buffer_type();
}

// Asked of every node of a graph before any of them runs: the time to learn where routers are.
bool SupportsOp(ggml_backend_dev_t, const ggml_tensor* op) {
  if (const TensorOrigin* origin = ExpertProduct(op)) {
    try {
      origin->model->Learn(*origin, op);
    } catch (const std::bad_alloc&) {
      // Nothing may unwind through ggml; the step itself will say that there is no memory.
    }
  }
  return IsExpertOp(op);
}

bool SupportsBufferType(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
  return type->device == device || ggml_backend_buft_is_host(type);
}

const char* RegistryName(ggml_backend_reg_t) {
  return kName;
}
size_t DeviceCount(ggml_backend_reg_t) {
  return 1;
}
ggml_backend_dev_t GetDevice(ggml_backend_reg_t, size_t) {
  return &g_device;
}
void* GetProcAddress(ggml_backend_reg_t, const char* name) {
  return BackendProcAddress(name);
}

}  // namespace

Status RegisterDevice() {
  static std::once_flag once;
  static Status status;
  std::call_once(once, [] {
    status = abi::CheckAbi();
    if (!status.ok()) return;
    g_device = {};
    g_device.iface.get_name = DeviceName;
    g_device.iface.get_description = DeviceDescription;
    g_device.iface.get_memory = DeviceMemory;
    g_device.iface.get_type = DeviceType;
    g_device.iface.get_props = DeviceProps;
    g_device.iface.init_backend = InitBackend;
    g_device.iface.get_buffer_type = DeviceBufferType;
    g_device.iface.supports_op = SupportsOp;
    g_device.iface.supports_buft = SupportsBufferType;
    g_device.reg = &g_registry;
    g_registry.api_version = abi::kBackendApiVersion;
    g_registry.iface = {RegistryName, DeviceCount, GetDevice, GetProcAddress};
    g_registry.context = nullptr;
    ggml_backend_register(&g_registry);
  });
  return status;
}

std::unique_ptr<ggml_backend_buffer_type> MakeBufferType(StreamedModel* model) {
  auto type = std::make_unique<ggml_backend_buffer_type>();
  type->iface = {BufferTypeName, AllocBuffer, Alignment, nullptr, AllocSize, IsHost};
  type->device = &g_device;
  type->context = model;
  return type;
}

const TensorOrigin* OriginOf(const ggml_tensor* tensor) {
  if (tensor == nullptr || tensor->buffer == nullptr) return nullptr;
  if (tensor->buffer->buft->device != &g_device) return nullptr;
  return static_cast<const TensorOrigin*>(tensor->extra);
}

}  // namespace remoe

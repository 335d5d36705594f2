#include "device/graph/weight_buffer.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "base/format.h"
#include "device/graph/device.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

// Tensors must have distinct addresses.
constexpr size_t kTensorBytes = 64;

struct Contents {
  void* base = nullptr;
  std::unique_ptr<BufferTensors> tensors;
};

Contents* ContentsOf(ggml_backend_buffer_t buffer) {
  return static_cast<Contents*>(buffer->context);
}

void FreeBuffer(ggml_backend_buffer_t buffer) {
  munmap(ContentsOf(buffer)->base, buffer->size);
  delete ContentsOf(buffer);
}

void* BufferBase(ggml_backend_buffer_t buffer) {
  return ContentsOf(buffer)->base;
}

// Nothing may unwind through ggml.
void Tell(const Contents& contents, const ggml_tensor& tensor, const char* what,
          const Status& status) {
  try {
    const std::string line = Format("%s%s: %s", tensor.name, what, status.message().c_str());
    if (contents.tensors != nullptr) return contents.tensors->Tell(line);
  } catch (const std::bad_alloc&) {
    // Said without the program's log, then.
  }
  std::fprintf(stderr, "remoe-edge: %s%s: %s\n", tensor.name, what, status.message().c_str());
}

ggml_status InitTensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  Status status(Code::kOutOfMemory, "no memory to load it");
  try {
    Contents* contents = ContentsOf(buffer);
    if (contents->tensors == nullptr) {
      contents->tensors = LoadingOf(buffer->buft)->Begin(buffer->size / kTensorBytes);
    }
    Result<TensorOrigin*> origin = contents->tensors->Place(*tensor);
    if (origin.ok()) {
      tensor->extra = origin.value();
      return GGML_STATUS_SUCCESS;
    }
    status = origin.status();
  } catch (const std::bad_alloc&) {
    // Nothing may unwind through ggml.
  }
  Tell(*ContentsOf(buffer), *tensor, "", status);
  return GGML_STATUS_FAILED;
}

void SetTensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
               size_t) {
  if (offset != 0 || OriginOf(tensor) == nullptr) return;
  try {
    ContentsOf(buffer)->tensors->Fill(*tensor, data);
  } catch (const std::bad_alloc&) {
    OriginOf(tensor)->model->failure().Keep(Status(Code::kOutOfMemory, "no memory to load it"));
  }
}
void MemsetTensor(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t) {}

// llama.cpp asks for them when it saves a model: they are read then. The interface knows no failure;
// so the model keeps it, and no weight is a plausible one: all bits set are no number in any format
// that has such.
void GetTensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
               size_t size) {
  const TensorOrigin* origin = OriginOf(tensor);
  if (origin == nullptr) return;
  Status status(Code::kOutOfMemory, "no memory to read it through");
  try {
    status = origin->model->ReadTensor(*origin, offset, size, static_cast<uint8_t*>(data));
  } catch (const std::bad_alloc&) {
    // Nothing may unwind through ggml.
  }
  if (status.ok()) return;
  std::memset(data, 0xff, size);
  origin->model->failure().Keep(status);
  Tell(*ContentsOf(buffer), *tensor, " could not be read", status);
}
void ClearBuffer(ggml_backend_buffer_t, uint8_t) {}

const char* BufferTypeName(ggml_backend_buffer_type_t) {
  return kDeviceName;
}

ggml_backend_buffer_t AllocBuffer(ggml_backend_buffer_type_t type, size_t size) {
  const size_t mapped = size == 0 ? kTensorBytes : size;
  void* base = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  ggml_backend_buffer_i functions{};
  auto* contents = new (std::nothrow) Contents{base, nullptr};
  if (contents == nullptr) {
    munmap(base, mapped);
    return nullptr;
  }
  functions.free_buffer = FreeBuffer;
  functions.get_base = BufferBase;
  functions.init_tensor = InitTensor;
  functions.memset_tensor = MemsetTensor;
  functions.set_tensor = SetTensor;
  functions.get_tensor = GetTensor;
  functions.clear = ClearBuffer;
  return ggml_backend_buffer_init(type, functions, contents, mapped);
}

size_t Alignment(ggml_backend_buffer_type_t) {
  return kTensorBytes;
}
size_t AllocSize(ggml_backend_buffer_type_t, const ggml_tensor*) {
  return kTensorBytes;
}
// After loading always the truth: nobody but this device can use these tensors.
bool IsHost(ggml_backend_buffer_type_t type) {
  return LoadingOf(type)->in_place();
}

}  // namespace

void BufferTensors::Tell(const std::string& line) const {
  std::fprintf(stderr, "remoe-edge: %s\n", line.c_str());
}

std::unique_ptr<ggml_backend_buffer_type> MakeBufferType(ggml_backend_dev_t device,
                                                         WeightLoading* loading) {
  auto type = std::make_unique<ggml_backend_buffer_type>();
  type->iface.get_name = BufferTypeName;
  type->iface.alloc_buffer = AllocBuffer;
  type->iface.get_alignment = Alignment;
  type->iface.get_alloc_size = AllocSize;
  type->iface.is_host = IsHost;
  type->device = device;
  type->context = loading;
  return type;
}

WeightLoading* LoadingOf(ggml_backend_buffer_type_t type) {
  return static_cast<WeightLoading*>(type->context);
}

bool InWeightBuffer(const ggml_tensor* tensor) {
  return tensor != nullptr && tensor->buffer != nullptr &&
         tensor->buffer->buft->iface.get_name == BufferTypeName;
}

const TensorOrigin* OriginOf(const ggml_tensor* tensor) {
  if (!InWeightBuffer(tensor)) return nullptr;
  const auto* origin = static_cast<const TensorOrigin*>(tensor->extra);
  return origin != nullptr && origin->model != nullptr ? origin : nullptr;
}

}  // namespace remoe

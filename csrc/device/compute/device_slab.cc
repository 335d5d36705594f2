#include "device/compute/device_slab.h"

#include <algorithm>
#include <numeric>

#include "base/format.h"
#include "base/rounding.h"
#include "device/graph/plain_tensor.h"
#include "storage/reader.h"

namespace remoe {

SlotRules DeviceSlab::Rules(ggml_backend_dev_t gpu, const ModelFile& file,
                            const std::vector<ExpertLayer>& layers) {
  const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(gpu);
  SlotRules rules;
  rules.staged = true;
  rules.align = std::max<uint64_t>(rules.align, ggml_backend_buft_get_alignment(type));
  rules.stride = rules.align;
  for (const ExpertLayer& layer : layers) {
    rules.room.emplace_back();
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = file.tensors()[matrix.tensor];
      const ggml_tensor expert =
          PlainTensor(static_cast<ggml_type>(tensor.type), static_cast<int64_t>(tensor.ne[0]),
                      static_cast<int64_t>(tensor.ne[1]), 1);
      rules.room.back().push_back(
          std::max<uint64_t>(matrix.expert_bytes, ggml_backend_buft_get_alloc_size(type, &expert)));
      // Kernels count the way from one expert to the next in blocks of the format.
      rules.stride = std::lcm(rules.stride, static_cast<uint64_t>(ggml_type_size(expert.type)));
    }
  }
  return rules;
}

Result<std::shared_ptr<DeviceSlab>> DeviceSlab::Make(ggml_backend_dev_t gpu, uint64_t slab_bytes,
                                                     uint64_t staging_bytes) {
  std::shared_ptr<DeviceSlab> slab(new DeviceSlab);
  const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(gpu);
  const char* name = ggml_backend_dev_name(gpu);
  const size_t most = ggml_backend_buft_get_max_size(type);
  if (slab_bytes > most) {
    return Status(Code::kOutOfMemory,
                  Format("%s holds at most %.1f MiB in one buffer, and the expert cache is one of "
                         "%.1f MiB: lower --cache",
                         name, most / 1048576.0, slab_bytes / 1048576.0));
  }
  slab->slab_ = ggml_backend_buft_alloc_buffer(type, slab_bytes);
  if (slab->slab_ == nullptr) {
    return Status(Code::kOutOfMemory, Format("%s has no %.1f MiB left for the expert cache", name,
                                             slab_bytes / 1048576.0));
  }
  ggml_backend_buffer_set_usage(slab->slab_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
  ggml_backend_buffer_clear(slab->slab_, 0);
  ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(gpu);
  if (host == nullptr) host = ggml_backend_cpu_buffer_type();
  slab->staging_bytes_ = staging_bytes;
  // What is pinned is not always aligned to pages, which O_DIRECT wants.
  slab->host_ = ggml_backend_buft_alloc_buffer(host, staging_bytes + kPage);
  if (slab->host_ == nullptr) {
    return Status(Code::kOutOfMemory,
                  Format("cannot have %.1f MiB of staging buffers", staging_bytes / 1048576.0));
  }
  const auto base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(slab->host_));
  slab->staging_ = reinterpret_cast<uint8_t*>(RoundUp(base, kPage));
  return slab;
}

DeviceSlab::~DeviceSlab() {
  ggml_backend_buffer_free(slab_);
  ggml_backend_buffer_free(host_);
}

uint8_t* DeviceSlab::at(uint64_t offset) const {
  return static_cast<uint8_t*>(ggml_backend_buffer_get_base(slab_)) + offset;
}

void DeviceSlab::Write(uint64_t offset, const uint8_t* bytes, uint64_t n_bytes,
                       uint64_t room_bytes) {
  ggml_tensor part{};
  part.type = GGML_TYPE_I8;
  part.ne[0] = static_cast<int64_t>(room_bytes);
  part.ne[1] = part.ne[2] = part.ne[3] = 1;
  part.nb[0] = 1;
  part.nb[1] = part.nb[2] = part.nb[3] = room_bytes;
  part.buffer = slab_;
  part.data = at(offset);
  ggml_backend_tensor_set(&part, bytes, 0, n_bytes);
  // A matrix of another shape may have lain there.
  if (room_bytes > n_bytes) ggml_backend_tensor_memset(&part, 0, n_bytes, room_bytes - n_bytes);
}

}  // namespace remoe

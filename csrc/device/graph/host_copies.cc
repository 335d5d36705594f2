#include "device/graph/host_copies.h"

#include <algorithm>

#include "ggml-backend.h"

namespace remoe {

bool InHostMemory(const ggml_tensor* tensor) {
  return tensor->buffer == nullptr || ggml_backend_buffer_is_host(tensor->buffer);
}

uint64_t HostCopies::BytesFor(const ggml_tensor* weight) {
  return weight == nullptr || InHostMemory(weight) ? 0 : ggml_nbytes(weight);
}

const ggml_tensor* HostCopies::Of(const ggml_tensor* weight) {
  const uint64_t n_bytes = BytesFor(weight);
  if (n_bytes == 0) return weight;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Copy>& copy = copies_[weight];
  if (copy == nullptr) {
    auto made = std::make_unique<Copy>();
    made->tensor = *weight;
    made->bytes.resize(n_bytes);
    ggml_backend_tensor_get(weight, made->bytes.data(), 0, n_bytes);
    made->tensor.buffer = nullptr;
    made->tensor.extra = nullptr;
    made->tensor.view_src = nullptr;
    made->tensor.op = GGML_OP_NONE;
    std::fill(std::begin(made->tensor.src), std::end(made->tensor.src), nullptr);
    made->tensor.data = made->bytes.data();
    copy = std::move(made);
    n_bytes_ += n_bytes;
  }
  return &copy->tensor;
}

uint64_t HostCopies::n_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return n_bytes_;
}

}  // namespace remoe

#include "device/compute/repack.h"

#include <cstring>
#include <vector>

#include "device/graph/plain_tensor.h"

namespace remoe {

namespace {

// The buffer types of the CPU device besides its own, in llama.cpp's order of preference.
std::vector<ggml_backend_buffer_type_t> ExtraBufferTypes(ggml_backend_dev_t cpu) {
  std::vector<ggml_backend_buffer_type_t> types;
  const auto get =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
  if (get == nullptr) return types;
  for (ggml_backend_buffer_type_t* type = get(cpu); type != nullptr && *type != nullptr; ++type) {
    types.push_back(*type);
  }
  return types;
}

// One small buffer of a type for the whole process: tensors only borrow its identity.
ggml_backend_buffer_t EmptyBuffer(ggml_backend_buffer_type_t type) {
  static std::vector<std::pair<ggml_backend_buffer_type_t, ggml_backend_buffer_t>> made;
  for (const auto& [made_type, buffer] : made) {
    if (made_type == type) return buffer;
  }
  ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, 64);
  made.emplace_back(type, buffer);
  return buffer;
}

}  // namespace

Repack Repack::For(ggml_type type, int64_t ne0, int64_t ne1, int64_t n_experts) {
  Repack repack;
  const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  for (const ggml_backend_buffer_type_t extra : ExtraBufferTypes(cpu)) {
    ggml_backend_buffer_t buffer = EmptyBuffer(extra);
    if (buffer == nullptr) continue;
    // The question that llama.cpp asks of each type: can a product with these weights run there?
    ggml_tensor weights = PlainTensor(type, ne0, ne1, n_experts);
    weights.buffer = buffer;
    ggml_tensor input = PlainTensor(GGML_TYPE_F32, ne0, n_experts, 512);
    ggml_tensor ids = PlainTensor(GGML_TYPE_I32, n_experts, 512, 1);
    ggml_tensor op = PlainTensor(GGML_TYPE_F32, ne1, n_experts, 512);
    op.op = GGML_OP_MUL_MAT_ID;
    op.src[0] = &weights;
    op.src[1] = &input;
    op.src[2] = &ids;
    if (!ggml_backend_dev_supports_op(cpu, &op)) continue;
    repack.buffer_ = buffer;
    repack.type_ = type;
    repack.ne0_ = ne0;
    repack.ne1_ = ne1;
    break;
  }
  return repack;
}

void Repack::Tag(ggml_tensor* tensor) const {
  tensor->buffer = buffer_;
  ggml_backend_buffer_init_tensor(buffer_, tensor);
}

void Repack::Apply(const uint8_t* source, uint8_t* dest) const {
  ggml_tensor expert = PlainTensor(type_, ne0_, ne1_, 1);
  expert.data = dest;
  Tag(&expert);
  buffer_->iface.set_tensor(buffer_, &expert, source, 0, ggml_nbytes(&expert));
}

}  // namespace remoe

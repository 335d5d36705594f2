// The side of the Executor that runs a piece as llama.cpp built it, and that reaches into a GPU's
// memory: ids and activations come to the host, slots in place of ids go back.
#include <algorithm>

#include "base/format.h"
#include "device/compute/executor.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr int kMaxNodes = 128;
// Of ids, enough for a batch of 512 tokens with 64 experts each, so that no step frees a buffer that an
// earlier one had bound: lavapipe (Mesa 22.3) dies of that.
constexpr size_t kIdsBytes = 512 * 64 * sizeof(int32_t);

}  // namespace

Status Executor::Failed(ggml_status status) {
  if (status == GGML_STATUS_SUCCESS) return Status::Ok();
  if (status == GGML_STATUS_ABORTED) return Status(Code::kCancelled, "computing was aborted");
  return Status(Code::kIo, Format("computing experts failed (ggml status %d)", status));
}

ggml_tensor Executor::OnHost(const ggml_tensor* tensor, std::vector<uint8_t>* bytes) const {
  ggml_tensor seen = *tensor;
  if (gpu_ == nullptr || InHostMemory(tensor)) return seen;
  bytes->resize(ggml_nbytes(tensor));
  ggml_backend_tensor_get(tensor, bytes->data(), 0, bytes->size());
  seen.data = bytes->data();
  seen.buffer = nullptr;
  return seen;
}

bool Executor::PlaceSlots(ggml_tensor* ids) {
  const std::vector<int32_t>& slots = step_.slots();
  if (gpu_ == nullptr) {
    ids->data = const_cast<int32_t*>(slots.data());
    return true;
  }
  const size_t n_bytes = slots.size() * sizeof(int32_t);
  if (slot_ids_ == nullptr || ggml_backend_buffer_get_size(slot_ids_) < n_bytes) {
    ggml_backend_buffer_free(slot_ids_);
    slot_ids_ = ggml_backend_buft_alloc_buffer(ggml_backend_get_default_buffer_type(gpu_),
                                               std::max(n_bytes, kIdsBytes));
    if (slot_ids_ == nullptr) return false;
  }
  ids->buffer = slot_ids_;
  ids->view_offs = 0;
  ids->data = ggml_backend_buffer_get_base(slot_ids_);
  ggml_backend_tensor_set(ids, slots.data(), 0, n_bytes);
  return true;
}

Status Executor::ComputeWhole(const Job& job) {
  const Piece& piece = *job.piece;
  const ggml_tensor* ids = piece.ids();
  ggml_tensor slot_ids = *ids;
  slot_ids.op = GGML_OP_NONE;
  slot_ids.view_src = nullptr;
  std::fill(std::begin(slot_ids.src), std::end(slot_ids.src), nullptr);
  slot_ids.nb[0] = sizeof(int32_t);
  slot_ids.nb[1] = slot_ids.nb[0] * ids->ne[0];
  slot_ids.nb[2] = slot_ids.nb[3] = slot_ids.nb[1] * ids->ne[1];
  if (!PlaceSlots(&slot_ids)) {
    return Status(Code::kOutOfMemory, "no GPU memory for the ids of a batch");
  }

  std::vector<ggml_tensor> views;
  views.reserve(piece.products.size());
  std::vector<std::pair<ggml_tensor*, ggml_tensor*>> saved;  // (weights, ids) of each product
  for (ggml_tensor* product : piece.products) {
    views.push_back(job.model->view(*OriginOf(product->src[0])));
    saved.emplace_back(product->src[0], product->src[2]);
    product->src[0] = &views.back();
    product->src[2] = &slot_ids;
  }
  ggml_status status;
  if (pieces_.size() == 1) {
    status = ggml_backend_graph_compute(backend(), job.graph);
  } else {
    graph_memory_.resize(ggml_graph_overhead_custom(kMaxNodes, false) + 1024);
    ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
    ggml_cgraph* part = ggml_new_graph_custom(context, kMaxNodes, false);
    for (int i = piece.begin; i < piece.end; i++) {
      ggml_graph_add_node(part, ggml_graph_node(job.graph, i));
    }
    status = ggml_backend_graph_compute(backend(), part);
    ggml_free(context);
  }
  for (size_t i = 0; i < piece.products.size(); i++) {
    piece.products[i]->src[0] = saved[i].first;
    piece.products[i]->src[2] = saved[i].second;
  }
  return Failed(status);
}

}  // namespace remoe

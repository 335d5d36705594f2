#include "device/compute/device_pairs.h"

#include <algorithm>
#include <cstring>

#include "base/rounding.h"
#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr int kMaxNodes = 128;

// A tensor of the graph that runs, as a leaf over the same memory.
ggml_tensor Leaf(const ggml_tensor& tensor) {
  ggml_tensor leaf = tensor;
  leaf.op = GGML_OP_NONE;
  leaf.view_src = nullptr;
  leaf.view_offs = 0;
  leaf.flags = 0;
  std::fill(std::begin(leaf.src), std::end(leaf.src), nullptr);
  return leaf;
}

// Its rows one after another, [ne0, ne1 * ne2]: whether they lie so.
bool IsRows(const ggml_tensor& tensor) {
  return tensor.nb[0] == sizeof(float) && tensor.ne[3] == 1 &&
         (tensor.ne[1] == 1 || tensor.nb[2] == tensor.ne[1] * tensor.nb[1]);
}

ggml_tensor* AsRows(ggml_context* context, const ggml_tensor& tensor) {
  ggml_tensor* rows =
      ggml_new_tensor_2d(context, GGML_TYPE_F32, tensor.ne[0], tensor.ne[1] * tensor.ne[2]);
  rows->nb[1] = tensor.ne[1] == 1 ? tensor.nb[2] : tensor.nb[1];
  rows->nb[2] = rows->nb[3] = rows->nb[1] * rows->ne[1];
  rows->buffer = tensor.buffer;
  rows->data = tensor.data;
  return rows;
}

}  // namespace

DevicePairs::DevicePairs(ggml_backend_t gpu)
    : PairRunner(gpu), memory_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(gpu))) {}

DevicePairs::~DevicePairs() {
  ggml_gallocr_free(memory_);
  ggml_backend_buffer_free(kept_);
}

bool DevicePairs::Prepare(ggml_tensor** nodes, int begin, int end) {
  if (!Collect(nodes, begin, end, false)) return false;
  for (const Step& step : steps_) {
    if (step.result && !IsRows(*step.node)) return false;
  }
  for (const External& external : externals_) {
    if (!IsRows(*external.tensor)) return false;
  }
  return KeepInputs();
}

bool DevicePairs::Overwritten(const ggml_tensor* tensor) const {
  const auto* begin = static_cast<const uint8_t*>(tensor->data);
  const uint8_t* end = begin + ggml_nbytes(tensor);
  return std::any_of(steps_.begin(), steps_.end(), [=](const Step& step) {
    const auto* data = static_cast<const uint8_t*>(step.node->data);
    return step.result && step.node->buffer == tensor->buffer &&
           begin < data + ggml_nbytes(step.node) && data < end;
  });
}

// The graph's allocator may have given the result the memory of an input; see PairRunner.
bool DevicePairs::KeepInputs() {
  const ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(backend_);
  const size_t align = ggml_backend_buft_get_alignment(type);
  size_t wanted = 0;
  for (const External& external : externals_) {
    if (!Overwritten(external.tensor)) continue;
    if (!ggml_is_contiguous(external.tensor)) return false;
    wanted += RoundUp(ggml_nbytes(external.tensor), align);
  }
  if (wanted > 0 && (kept_ == nullptr || ggml_backend_buffer_get_size(kept_) < wanted)) {
    ggml_backend_buffer_free(kept_);
    kept_ = ggml_backend_buft_alloc_buffer(type, wanted);
    if (kept_ == nullptr) return false;
  }
  inputs_.clear();
  size_t used = 0;
  for (const External& external : externals_) {
    inputs_.push_back(Leaf(*external.tensor));
    if (!Overwritten(external.tensor)) continue;
    ggml_tensor& input = inputs_.back();
    ggml_tensor from = input;
    input.buffer = kept_;
    input.data = static_cast<uint8_t*>(ggml_backend_buffer_get_base(kept_)) + used;
    used += RoundUp(ggml_nbytes(&input), align);
    ggml_backend_tensor_copy(&from, &input);
  }
  return true;
}

ggml_tensor* DevicePairs::Rows(ggml_context* context, int64_t ne0, int64_t n) const {
  return ggml_new_tensor_3d(context, GGML_TYPE_F32, ne0, batch() ? 1 : n, batch() ? n : 1);
}

DevicePairs::Indices DevicePairs::MakeIndices(ggml_context* context, const Pair* pairs,
                                              int n) const {
  Indices indices;
  for (int p = 0; p < n; p++) {
    const int32_t row = pairs[p].token * static_cast<int32_t>(ids_->ne[0]) + pairs[p].k;
    indices.slot.push_back(pairs[p].slot);
    indices.expert.push_back(pairs[p].expert);
    indices.row.push_back(row);
    indices.token.push_back(pairs[p].token);
    indices.place.push_back(row);
  }
  const int64_t ne0 = batch() ? 1 : n, ne1 = batch() ? n : 1;
  indices.slots = ggml_new_tensor_2d(context, GGML_TYPE_I32, ne0, ne1);
  indices.experts = ggml_new_tensor_2d(context, GGML_TYPE_I32, ne0, ne1);
  indices.tokens = ggml_new_tensor_1d(context, GGML_TYPE_I32, n);
  indices.rows = ggml_new_tensor_1d(context, GGML_TYPE_I32, n);
  indices.places = ggml_new_tensor_1d(context, GGML_TYPE_I64, n);
  for (ggml_tensor* tensor :
       {indices.slots, indices.experts, indices.tokens, indices.rows, indices.places}) {
    ggml_set_input(tensor);
  }
  return indices;
}

ggml_tensor* DevicePairs::Gather(ggml_context* context, size_t e, const Indices& indices,
                                 int n) const {
  const ggml_tensor& input = inputs_[e];
  ggml_tensor* rows = AsRows(context, input);
  // One token's row serves all its experts, as llama.cpp has it.
  if (!batch() && input.ne[1] == 1) return ggml_reshape_3d(context, rows, input.ne[0], 1, 1);
  ggml_tensor* gathered =
      ggml_get_rows(context, rows, input.ne[1] == 1 ? indices.tokens : indices.rows);
  return ggml_reshape_3d(context, gathered, input.ne[0], batch() ? 1 : n, batch() ? n : 1);
}

ggml_status DevicePairs::RunGroup(const Pair* pairs, int n, Stage) {
  const size_t tensors = steps_.size() * 4 + externals_.size() * 4 + 8;
  graph_memory_.resize(tensors * ggml_tensor_overhead() +
                       ggml_graph_overhead_custom(kMaxNodes, false) + 4096);
  ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
  Indices indices = MakeIndices(context, pairs, n);
  std::vector<ggml_tensor*> gathered;
  for (size_t e = 0; e < inputs_.size(); e++) {
    gathered.push_back(Gather(context, e, indices, n));
  }
  std::vector<ggml_tensor*> made(steps_.size());
  std::vector<ggml_tensor> views;
  views.reserve(steps_.size());
  ggml_cgraph* graph = ggml_new_graph_custom(context, kMaxNodes, false);
  for (size_t i = 0; i < steps_.size(); i++) {
    const Step& step = steps_[i];
    const ggml_tensor* node = step.node;
    ggml_tensor* copy;
    if (const TensorOrigin* origin = ExpertProduct(node)) {
      views.push_back(origin->model->view(*origin));
      ggml_tensor* input = step.operand[1] >= 0 ? made[step.operand[1]] : gathered[step.external];
      copy = ggml_mul_mat_id(context, &views.back(), input, indices.slots);
    } else if (node->op == GGML_OP_VIEW) {
      ggml_tensor* parent = made[step.operand[0]];
      copy = ggml_view_3d(context, parent, node->ne[0], parent->ne[1], parent->ne[2], parent->nb[1],
                          parent->nb[2], node->view_offs);
    } else {
      copy = Rows(context, node->ne[0], n);
      copy->op = node->op;
      for (int s = 0; s < 2; s++) {
        if (step.operand[s] >= 0) copy->src[s] = made[step.operand[s]];
      }
      if (node->op == GGML_OP_ADD_ID) {
        copy->src[1] = node->src[1];
        copy->src[2] = indices.experts;
      }
    }
    if (node->op != GGML_OP_VIEW) {
      std::memcpy(copy->op_params, node->op_params, sizeof(node->op_params));
    }
    made[i] = copy;
    if (!step.result) continue;
    ggml_tensor* rows = ggml_reshape_2d(context, copy, copy->ne[0], n);
    ggml_build_forward_expand(
        graph, ggml_set_rows(context, AsRows(context, Leaf(*node)), rows, indices.places));
  }
  ggml_status status = GGML_STATUS_ALLOC_FAILED;
  if (ggml_gallocr_alloc_graph(memory_, graph)) {
    const auto set = [](ggml_tensor* tensor, const auto& values) {
      // What no operation takes has no memory.
      if (tensor->buffer != nullptr) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
      }
    };
    set(indices.slots, indices.slot);
    set(indices.experts, indices.expert);
    set(indices.tokens, indices.token);
    set(indices.rows, indices.row);
    set(indices.places, indices.place);
    status = ggml_backend_graph_compute(backend_, graph);
  }
  ggml_free(context);
  return status;
}

}  // namespace remoe

#include "device/compute/lossy_choice.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "device/compute/dial.h"
#include "device/graph/cpu_backend.h"
#include "device/graph/host_copies.h"
#include "device/graph/router_scores.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

template <typename T>
T* At(const ggml_tensor* tensor, int64_t i, size_t stride, int64_t token, size_t token_stride) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor->data) + i * stride + token * token_stride);
}

const float* RowOf(const ggml_tensor* tensor, int token) {
  return At<const float>(tensor, 0, 0, token, tensor->nb[1]);
}

float* WeightOf(const ggml_tensor* weights, int i, int token) {
  return At<float>(weights, i, weights->nb[1], token, weights->nb[2]);
}

}  // namespace

LossyChoice::~LossyChoice() {
  if (cpu_ != nullptr) ggml_backend_free(cpu_);
}

// From chosen_ [n] to the weights of these experts.
Status LossyChoice::Weigh(const GateChain& chain, int n, std::vector<float>* weights) {
  if (cpu_ == nullptr) {
    cpu_ = cpu::NewBackend();
    if (cpu_ == nullptr) return Status(Code::kOutOfMemory, "no memory to weigh experts in");
    cpu::SetThreads(cpu_, 1);
  }
  const size_t n_tensors = 3 * chain.steps.size() + 1;
  graph_memory_.resize(n_tensors * (ggml_tensor_overhead() + n * sizeof(float) + 64) +
                       ggml_graph_overhead_custom(n_tensors, false) + 1024);
  ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), false});
  ggml_tensor* chosen = ggml_new_tensor_2d(context, GGML_TYPE_F32, n, 1);
  std::memcpy(chosen->data, chosen_.data(), n * sizeof(float));
  ggml_tensor* made = chain.Build(context, chosen);
  ggml_cgraph* graph = ggml_new_graph_custom(context, n_tensors, false);
  ggml_build_forward_expand(graph, made);
  const ggml_status status = ggml_backend_graph_compute(cpu_, graph);
  weights->resize(n);
  std::memcpy(weights->data(), made->data, n * sizeof(float));
  ggml_free(context);
  if (status == GGML_STATUS_SUCCESS) return Status::Ok();
  return Status(Code::kIo, Format("weighing experts failed (ggml status %d)", status));
}

Status LossyChoice::Prove(GateNote* note, const LayerStep& step) {
  const int k = step.k();
  for (int t = 0; t < step.n_tokens(); t++) {
    const float* values = RowOf(note->chain.values, t);
    chosen_.clear();
    for (int i = 0; i < k; i++) chosen_.push_back(values[step.ids()[t * k + i]]);
    REMOE_RETURN_IF_ERROR(Weigh(note->chain, k, &weights_));
    for (int i = 0; i < k; i++) {
      if (std::memcmp(WeightOf(note->chain.weights, i, t), &weights_[i], sizeof(float)) != 0) {
        return Status(Code::kNotSupported,
                      "the router's values do not give the weights that the experts have");
      }
    }
  }
  note->proven = true;
  return Status::Ok();
}

Status LossyChoice::WriteWeights(const GateChain& chain, int token, int k) {
  const float* values = RowOf(chain.values, token);
  chosen_.clear();
  for (int i = 0; i < k; i++) {
    const size_t at = static_cast<size_t>(token) * k + i;
    if (skipped_[at] == 0) chosen_.push_back(values[ids_[at]]);
  }
  REMOE_RETURN_IF_ERROR(Weigh(chain, static_cast<int>(chosen_.size()), &weights_));
  for (int i = 0, left = 0; i < k; i++) {
    const bool is_skipped = skipped_[static_cast<size_t>(token) * k + i] != 0;
    *WeightOf(chain.weights, i, token) = is_skipped ? 0 : weights_[left++];
  }
  return Status::Ok();
}

// Whoever reads the ids later, for biases or scales of experts, means those that were computed.
void LossyChoice::WriteIds(const LayerStep& step) {
  const ggml_tensor* ids = step.product()->src[2];
  for (int t = 0; t < step.n_tokens(); t++) {
    for (int i = 0; i < step.k(); i++) {
      *At<int32_t>(ids, i, ids->nb[0], t, ids->nb[1]) = ids_[static_cast<size_t>(t) * step.k() + i];
    }
  }
}

Status LossyChoice::Choose(StreamedModel* model, const LayerStep& step, bool may_be_coarse) {
  changed_ = any_skipped_ = false;
  const int block = model->layers()[step.layer()].block;
  GateNote* note = model->gates()->Find(step.product()->src[2]);
  const ggml_tensor* scores = RouterScores(step.product());
  if (note == nullptr || scores == nullptr || !InHostMemory(scores) ||
      !InHostMemory(note->chain.values) || !InHostMemory(note->chain.weights)) {
    return Status(
        Code::kNotSupported,
        Format("layer %d: the weights of its experts are out of reach: no loss of quality "
               "can be bought here",
               block));
  }
  const GateChain& chain = note->chain;
  if (!note->proven) {
    const Status proven = Prove(note, step);
    if (!proven.ok()) {
      return Status(proven.code(), Format("layer %d: %s", block, proven.message().c_str()));
    }
  }
  const Cache& cache = model->store()->cache();
  const int k = step.k(), n_experts = static_cast<int>(scores->ne[0]);
  present_.resize(n_experts);
  const CoarseSource* forms = model->store()->coarse();
  for (int e = 0; e < n_experts; e++) {
    const bool resident = cache.SlotOf(step.layer(), e) != kNoSlot;
    const bool coarse =
        resident && forms != nullptr && forms->IsCoarse(step.layer(), static_cast<uint16_t>(e));
    present_[e] = !resident ? Dial::kAbsent : coarse ? Dial::kCoarse : Dial::kWhole;
  }
  ids_ = step.ids();
  skipped_.assign(ids_.size(), 0);
  coarse_.assign(ids_.size(), 0);
  for (int t = 0; t < step.n_tokens(); t++) {
    const size_t at = static_cast<size_t>(t) * k;
    weights_.clear();
    for (int i = 0; i < k; i++) weights_.push_back(*WeightOf(chain.weights, i, t));
    Dial::Said said;
    said.scores = RowOf(scores, t);
    said.values = RowOf(chain.values, t);
    said.logits = chain.of_logits();
    said.weights = weights_.data();
    const bool changed = model->dial()->Choose(said, present_, may_be_coarse, k, &ids_[at],
                                               &skipped_[at], &coarse_[at]);
    // What one token has read for it, the next one need not have read again.
    for (int i = 0; i < k; i++) present_[ids_[at + i]] = Dial::kWhole;
    if (!changed) continue;
    changed_ = true;
    REMOE_RETURN_IF_ERROR(WriteWeights(chain, t, k));
  }
  any_skipped_ = std::any_of(skipped_.begin(), skipped_.end(), [](uint8_t each) { return each; });
  if (changed_) WriteIds(step);
  return Status::Ok();
}

}  // namespace remoe

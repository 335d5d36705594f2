#include "device/graph/router_scores.h"

#include <algorithm>
#include <cmath>

namespace remoe {

namespace {

// Biased scores spread over about 1 where logits spread over several units.
constexpr float kBiasedSharpness = 4;
constexpr int kMaxDepth = 12;

bool Moves(const ggml_tensor* tensor) {
  switch (tensor->op) {
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_CONT:
    case GGML_OP_GET_ROWS:
    case GGML_OP_SET_ROWS:
      return true;
    default:
      return false;
  }
}

}  // namespace

ScoreKind KindOf(const ggml_tensor* scores) {
  bool same_values = true;
  for (int depth = 0; scores != nullptr && depth < kMaxDepth; depth++) {
    if (scores->op == GGML_OP_MUL_MAT) return ScoreKind::kLogits;
    const bool sigmoid =
        scores->op == GGML_OP_UNARY && ggml_get_unary_op(scores) == GGML_UNARY_OP_SIGMOID;
    if (scores->op == GGML_OP_SOFT_MAX || sigmoid) {
      return same_values ? ScoreKind::kProbabilities : ScoreKind::kBiased;
    }
    if (scores->op == GGML_OP_UNARY || scores->op == GGML_OP_SQRT) return ScoreKind::kBiased;
    same_values &= Moves(scores);
    scores = scores->src[0];
  }
  return ScoreKind::kLogits;
}

ggml_tensor* RouterScores(const ggml_tensor* product) {
  const ggml_tensor* ids = product->src[2];
  const ggml_tensor* sorted = ids->view_src != nullptr ? ids->view_src : ids;
  if (sorted->op != GGML_OP_ARGSORT) return nullptr;
  ggml_tensor* scores = sorted->src[0];
  const bool fits = scores->type == GGML_TYPE_F32 && scores->nb[0] == sizeof(float) &&
                    scores->ne[0] == product->src[0]->ne[2] && scores->ne[1] == ids->ne[1] &&
                    scores->ne[2] == 1 && scores->ne[3] == 1;
  return fits ? scores : nullptr;
}

void ToProbabilities(ScoreKind kind, const float* scores, int64_t n_experts, float* probs) {
  if (kind == ScoreKind::kProbabilities) {
    // Masked groups stand at minus infinity.
    for (int64_t e = 0; e < n_experts; e++)
      probs[e] = scores[e] > 0 ? std::min(scores[e], 1.0f) : 0;
    return;
  }
  const float sharpness = kind == ScoreKind::kBiased ? kBiasedSharpness : 1;
  const float most = *std::max_element(scores, scores + n_experts);
  float sum = 0;
  for (int64_t e = 0; e < n_experts; e++) {
    sum += probs[e] = std::exp(sharpness * (scores[e] - most));
  }
  for (int64_t e = 0; e < n_experts; e++) probs[e] /= sum;
}

void ReadProbabilities(const ggml_tensor* scores, int64_t begin, int64_t end, float* probs) {
  const ScoreKind kind = KindOf(scores);
  const int64_t n_experts = scores->ne[0];
  for (int64_t t = begin; t < end; t++, probs += n_experts) {
    const auto* row = reinterpret_cast<const float*>(static_cast<const char*>(scores->data) +
                                                     t * static_cast<int64_t>(scores->nb[1]));
    ToProbabilities(kind, row, n_experts, probs);
  }
}

}  // namespace remoe

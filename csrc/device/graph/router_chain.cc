#include "device/graph/router_chain.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "ggml-backend.h"

namespace remoe {

namespace {

constexpr int kMaxSteps = 8;

bool IsWeight(const ggml_tensor* tensor) {
  return tensor != nullptr && tensor->op == GGML_OP_NONE && tensor->data != nullptr &&
         tensor->buffer != nullptr;
}

bool IsFloats(const ggml_tensor* tensor, int64_t n) {
  return IsWeight(tensor) && tensor->type == GGML_TYPE_F32 && tensor->ne[0] == n &&
         ggml_nrows(tensor) == 1;
}

bool GatingStep(const ggml_tensor* node, int n_experts, RouterChain::Step* step) {
  using Kind = RouterChain::Step::Kind;
  switch (node->op) {
    case GGML_OP_ADD:
      step->kind = Kind::kAdd;
      step->bias = node->src[1];
      return IsFloats(step->bias, n_experts);
    case GGML_OP_SOFT_MAX:
      step->kind = Kind::kSoftmax;
      return node->src[1] == nullptr;
    case GGML_OP_SQRT:
      step->kind = Kind::kSqrt;
      return true;
    case GGML_OP_UNARY:
      step->kind =
          ggml_get_unary_op(node) == GGML_UNARY_OP_SIGMOID ? Kind::kSigmoid : Kind::kSoftplus;
      return ggml_get_unary_op(node) == GGML_UNARY_OP_SIGMOID ||
             ggml_get_unary_op(node) == GGML_UNARY_OP_SOFTPLUS;
    default:
      return false;
  }
}

}  // namespace

void ApplyStep(const RouterChain::Step& step, float* scores, int n) {
  using Kind = RouterChain::Step::Kind;
  switch (step.kind) {
    case Kind::kAdd:
      for (int e = 0; e < n; e++) scores[e] += static_cast<const float*>(step.bias->data)[e];
      break;
    case Kind::kSoftmax: {
      const float most = *std::max_element(scores, scores + n);
      float sum = 0;
      for (int e = 0; e < n; e++) sum += scores[e] = std::exp(scores[e] - most);
      for (int e = 0; e < n; e++) scores[e] /= sum;
      break;
    }
    case Kind::kSigmoid:
      for (int e = 0; e < n; e++) scores[e] = 1 / (1 + std::exp(-scores[e]));
      break;
    case Kind::kSoftplus:
      for (int e = 0; e < n; e++)
        scores[e] = std::log1p(std::exp(-std::fabs(scores[e]))) + std::max(scores[e], 0.0f);
      break;
    case Kind::kSqrt:
      for (int e = 0; e < n; e++) scores[e] = std::sqrt(scores[e]);
      break;
  }
}

// Past what only changes the shape. Where experts come in groups, of which a token takes the best,
// the others' scores are masked through rows gathered and set again: passed over too, at the price
// that groups are not told apart.
const ggml_tensor* Unreshaped(const ggml_tensor* tensor) {
  while (tensor != nullptr && (tensor->op == GGML_OP_VIEW || tensor->op == GGML_OP_RESHAPE ||
                               tensor->op == GGML_OP_SET_ROWS || tensor->op == GGML_OP_GET_ROWS)) {
    tensor = tensor->src[0];
  }
  return tensor;
}

bool FollowRouter(const ggml_tensor* product, int n_experts, RouterChain* chain, std::string* why) {
  *chain = RouterChain();
  const ggml_tensor* sorted = Unreshaped(product->src[2]);
  if (sorted == nullptr || sorted->op != GGML_OP_ARGSORT) {
    *why = "its experts are not chosen by a sort";
    return false;
  }
  const ggml_tensor* node = Unreshaped(sorted->src[0]);
  std::vector<const ggml_tensor*> made;  // by each step
  for (int i = 0; node != nullptr && node->op != GGML_OP_MUL_MAT; i++) {
    RouterChain::Step step;
    if (i == kMaxSteps || !GatingStep(node, n_experts, &step)) {
      *why = Format("its routers go through %s", ggml_op_name(node->op));
      return false;
    }
    chain->steps.push_back(step);
    made.push_back(node);
    node = Unreshaped(node->src[0]);
  }
  if (node == nullptr) {
    *why = "its experts are chosen without a router";
    return false;
  }
  std::reverse(chain->steps.begin(), chain->steps.end());
  chain->weight = node->src[0];
  chain->input = node->src[1];
  chain->logits = node;
  while (chain->n_leading < made.size() &&
         chain->steps[chain->n_leading].kind == RouterChain::Step::Kind::kAdd) {
    chain->n_leading++;
    chain->logits = made[made.size() - chain->n_leading];
  }
  const ggml_tensor* weight = chain->weight;
  const bool readable = IsWeight(weight) && weight->ne[1] == n_experts && weight->ne[2] == 1 &&
                        (weight->type == GGML_TYPE_F32 || weight->type == GGML_TYPE_F16 ||
                         weight->type == GGML_TYPE_BF16);
  if (!readable) {
    *why = "its routers' weights are not floats in memory, one row for each expert";
    return false;
  }
  const ggml_tensor* input = chain->input;
  if (input->op == GGML_OP_MUL && input->src[0]->op == GGML_OP_RMS_NORM &&
      IsFloats(input->src[1], weight->ne[0])) {
    chain->norm = input->src[1];
  }
  return true;
}

}  // namespace remoe

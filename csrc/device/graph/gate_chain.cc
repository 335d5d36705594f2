#include "device/graph/gate_chain.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "device/graph/ffn_ops.h"
#include "device/graph/router_scores.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr int kMaxDepth = 16;

// Past what changes the shape and no value.
ggml_tensor* SameValues(ggml_tensor* tensor) {
  while (tensor != nullptr && (tensor->op == GGML_OP_RESHAPE || tensor->op == GGML_OP_CONT ||
                               (tensor->op == GGML_OP_VIEW && tensor->view_offs == 0 &&
                                ggml_nelements(tensor) == ggml_nelements(tensor->src[0])))) {
    tensor = tensor->src[0];
  }
  return tensor;
}

float Param(const ggml_tensor* node, int i) {
  float value;
  std::memcpy(&value, reinterpret_cast<const char*>(node->op_params) + i * sizeof(float),
              sizeof(float));
  return value;
}

// x / sum(x), with or without something done to the sum. RETURNS: x, or null.
ggml_tensor* FollowShare(const ggml_tensor* division, GateChain::Step* step) {
  step->kind = GateChain::Step::Kind::kShare;
  ggml_tensor* sum = SameValues(division->src[1]);
  if (sum->op == GGML_OP_CLAMP || sum->op == GGML_OP_SCALE) {
    step->sum_op = sum->op;
    step->a = Param(sum, 0);
    step->b = Param(sum, 1);
    sum = SameValues(sum->src[0]);
  }
  ggml_tensor* divided = SameValues(division->src[0]);
  if (sum->op != GGML_OP_SUM_ROWS || SameValues(sum->src[0]) != divided) return nullptr;
  return divided;
}

}  // namespace

bool WeighsExperts(const ggml_tensor* node, GateChain* chain) {
  if (node->op != GGML_OP_MUL) return false;
  const ggml_tensor* rows = node->src[0];
  for (int depth = 0; rows != nullptr && depth < kMaxDepth; depth++) {
    if (const TensorOrigin* origin = ExpertProduct(rows)) {
      const ExpertLayer& layer = origin->model->layers()[origin->layer];
      if (layer.matrices[origin->matrix].matrix != Matrix::kDown) return false;
      const ggml_tensor* by = node->src[1];
      chain->product = rows;
      return by->type == GGML_TYPE_F32 && by->ne[0] == 1 && by->ne[1] == rows->src[2]->ne[0] &&
             by->ne[2] == rows->src[2]->ne[1] && by->ne[3] == 1;
    }
    const bool passed = rows->op == GGML_OP_ADD_ID || rows->op == GGML_OP_MUL ||
                        rows->op == GGML_OP_RESHAPE || rows->op == GGML_OP_VIEW;
    if (!passed) return false;
    rows = rows->src[0];
  }
  return false;
}

bool FollowGate(const ggml_tensor* node, GateChain* chain, std::string* why) {
  why->clear();
  chain->steps.clear();
  chain->weights = node->src[1];
  const ggml_tensor* ids = chain->product->src[2];
  ggml_tensor* at = SameValues(node->src[1]);
  for (int depth = 0; at->op != GGML_OP_GET_ROWS; depth++) {
    GateChain::Step step;
    ggml_tensor* next = nullptr;
    if (at->op == GGML_OP_SCALE) {
      step.a = Param(at, 0);
      step.b = Param(at, 1);
      next = at->src[0];
    } else if (at->op == GGML_OP_SOFT_MAX && at->src[1] == nullptr && at->src[2] == nullptr &&
               Param(at, 0) == 1 && Param(at, 1) == 0 && at->ne[0] == ids->ne[0]) {
      step.kind = GateChain::Step::Kind::kSoftmax;
      next = at->src[0];
    } else if (at->op == GGML_OP_DIV && at->ne[0] == ids->ne[0]) {
      next = FollowShare(at, &step);
    }
    if (next == nullptr || depth == kMaxDepth) {
      *why = Format("its experts' weights go through %s", ggml_op_desc(at));
      return false;
    }
    chain->steps.push_back(step);
    at = SameValues(next);
  }
  std::reverse(chain->steps.begin(), chain->steps.end());
  ggml_tensor* values = SameValues(at->src[0]);
  // Factors that the file has for each expert: no choice of the router.
  if (values->op == GGML_OP_NONE || values->op == GGML_OP_REPEAT) return false;
  const ggml_tensor* scores = RouterScores(chain->product);
  if (scores == nullptr) {
    *why = "its experts are not chosen by a sort of the router's values";
    return false;
  }
  const bool fits = at->src[1] == ids && values->type == GGML_TYPE_F32 &&
                    values->nb[0] == sizeof(float) && values->ne[0] == scores->ne[0] &&
                    values->ne[1] == scores->ne[1] && values->ne[2] == 1 && values->ne[3] == 1;
  if (!fits) {
    *why = "its experts' weights are not gathered by the ids that the experts are";
    return false;
  }
  chain->values = values;
  return true;
}

const ggml_tensor* RouterOf(const ggml_tensor* product) {
  const ggml_tensor* at = product->src[2];
  for (int depth = 0; at != nullptr && depth < 2 * kMaxDepth; depth++) {
    if (at->op == GGML_OP_MUL_MAT) return at;
    at = at->view_src != nullptr && at->src[0] == nullptr ? at->view_src : at->src[0];
  }
  return nullptr;
}

ggml_tensor* GateChain::Build(ggml_context* context, ggml_tensor* chosen) const {
  ggml_tensor* at = chosen;
  for (const Step& step : steps) {
    switch (step.kind) {
      case Step::Kind::kSoftmax:
        at = ggml_soft_max(context, at);
        break;
      case Step::Kind::kScale:
        at = ggml_scale_bias(context, at, step.a, step.b);
        break;
      case Step::Kind::kShare: {
        ggml_tensor* sum = ggml_sum_rows(context, at);
        if (step.sum_op == GGML_OP_CLAMP) sum = ggml_clamp(context, sum, step.a, step.b);
        if (step.sum_op == GGML_OP_SCALE) sum = ggml_scale_bias(context, sum, step.a, step.b);
        at = ggml_div(context, at, sum);
        break;
      }
    }
  }
  return at;
}

}  // namespace remoe

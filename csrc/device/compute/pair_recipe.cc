// What PairRunner has found in a graph, as an FfnRecipe.
#include <cstring>

#include "device/compute/ffn_recipe.h"
#include "device/compute/pair_runner.h"
#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

void PairRunner::Describe(std::string* recipe) const {
  FfnRecipe described;
  described.n_in = n_in();
  uint32_t matrices = 0;
  const ExpertLayer* layer = nullptr;
  for (const Step& step : steps_) {
    FfnRecipe::Step& made = described.steps.emplace_back();
    made.op = step.node->op;
    made.operand[0] = step.operand[0];
    made.operand[1] = step.operand[1];
    made.ne0 = step.node->ne[0];
    if (const TensorOrigin* origin = ExpertProduct(step.node)) {
      made.matrix = origin->matrix;
      matrices |= 1u << origin->matrix;
      layer = &origin->model->layers()[origin->layer];
    }
    if (made.op == GGML_OP_ADD_ID) made.bias = step.node->src[1]->name;
    if (made.op == GGML_OP_VIEW) {
      made.offset = step.node->view_offs;
    } else {
      std::memcpy(made.params.data(), step.node->op_params, made.params.size());
    }
  }
  const bool whole = layer != nullptr && matrices == (1u << layer->matrices.size()) - 1;
  if (whole && steps_.back().result) *recipe += described.Bytes();
}

}  // namespace remoe

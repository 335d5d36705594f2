#include "device/compute/ffn_recipe.h"

#include <cstring>

#include "base/format.h"
#include "device/graph/ffn_ops.h"
#include "wire/bytes.h"

namespace remoe {

namespace {

constexpr size_t kMostSteps = 24;
constexpr int64_t kMostValues = 1 << 16;

Status Wrong(const char* what) {
  return Status(Code::kCorrupt, Format("a recipe with %s", what));
}

FfnOp KindOf(ggml_op op) {
  ggml_tensor node{};
  node.op = op;
  return FfnOpOf(&node);
}

int32_t Param(const FfnRecipe::Step& step, int i) {
  int32_t value;
  std::memcpy(&value, step.params.data() + i * sizeof(value), sizeof(value));
  return value;
}

// Checks one recipe, step by step.
class Checker {
 public:
  Checker(const FfnRecipe& recipe, const ModelFile& file, const ExpertLayer& layer)
      : recipe_(recipe), file_(file), layer_(layer) {}

  Status Check() {
    if (recipe_.n_in <= 0 || recipe_.n_in > kMostValues) return Wrong("no input");
    uint32_t matrices = 0;
    for (size_t i = 0; i < recipe_.steps.size(); i++) {
      const FfnRecipe::Step& step = recipe_.steps[i];
      for (const int operand : step.operand) {
        if (operand < -1 || operand >= static_cast<int>(i)) return Wrong("an unknown operand");
      }
      if (step.ne0 <= 0 || step.ne0 > kMostValues) return Wrong("a length out of range");
      REMOE_RETURN_IF_ERROR(CheckStep(step));
      if (step.matrix >= 0) matrices |= 1u << step.matrix;
    }
    if (matrices != (1u << layer_.matrices.size()) - 1) return Wrong("a matrix left out");
    if (recipe_.steps.back().op == GGML_OP_VIEW) return Wrong("a view as its result");
    return Status::Ok();
  }

 private:
  int64_t Length(int operand) const { return recipe_.steps[operand].ne0; }

  Status CheckStep(const FfnRecipe::Step& step) const {
    const FfnOp kind = KindOf(step.op);
    if ((kind == FfnOp::kProduct) != (step.matrix >= 0)) return Wrong("a product of nothing");
    if (kind == FfnOp::kProduct) return CheckProduct(step);
    if (step.operand[0] < 0) return Wrong("a step of nothing");
    switch (kind) {
      case FfnOp::kView:
        return CheckView(step);
      case FfnOp::kExpertBias:
        return CheckBias(step);
      case FfnOp::kElementwise:
        return CheckElementwise(step);
      default:
        return Wrong("an operation that is no expert's");
    }
  }

  Status CheckProduct(const FfnRecipe::Step& step) const {
    if (step.matrix >= static_cast<int>(layer_.matrices.size())) return Wrong("an unknown matrix");
    const Tensor& tensor = file_.tensors()[layer_.matrices[step.matrix].tensor];
    const int64_t input = step.operand[1] >= 0 ? Length(step.operand[1]) : recipe_.n_in;
    const bool fits = static_cast<int64_t>(tensor.ne[0]) == input &&
                      static_cast<int64_t>(tensor.ne[1]) == step.ne0 && step.operand[0] < 0;
    return fits ? Status::Ok() : Wrong("a product that does not fit its matrix");
  }

  Status CheckView(const FfnRecipe::Step& step) const {
    const bool half = step.op == GGML_OP_VIEW && recipe_.steps[step.operand[0]].matrix >= 0 &&
                      step.operand[1] < 0 && step.offset % sizeof(float) == 0 &&
                      step.offset <= kMostValues * sizeof(float) &&
                      step.offset / sizeof(float) + static_cast<uint64_t>(step.ne0) <=
                          static_cast<uint64_t>(Length(step.operand[0]));
    return half ? Status::Ok() : Wrong("a view beyond its product");
  }

  Status CheckBias(const FfnRecipe::Step& step) const {
    const std::string prefix = Format("blk.%d.ffn_", layer_.block);
    const Tensor* tensor = file_.Find(step.bias);
    const bool fits = step.bias.compare(0, prefix.size(), prefix) == 0 && tensor != nullptr &&
                      tensor->type == GGML_TYPE_F32 && tensor->n_dims == 2 &&
                      static_cast<int64_t>(tensor->ne[0]) == step.ne0 &&
                      static_cast<int>(tensor->ne[1]) == layer_.n_experts &&
                      Length(step.operand[0]) == step.ne0 && step.operand[1] < 0;
    return fits ? Status::Ok() : Wrong("a bias that does not fit");
  }

  Status CheckElementwise(const FfnRecipe::Step& step) const {
    const int64_t length = Length(step.operand[0]);
    const bool two = step.operand[1] >= 0;
    bool fits = length == step.ne0 && (!two || Length(step.operand[1]) == length);
    if (step.op == GGML_OP_GLU) {
      fits = Param(step, 0) >= 0 && Param(step, 0) < GGML_GLU_OP_COUNT &&
             (two ? fits : length == 2 * step.ne0);
    } else if (step.op == GGML_OP_UNARY) {
      fits &= !two && Param(step, 0) >= 0 && Param(step, 0) < GGML_UNARY_OP_COUNT;
    } else {
      fits &= two == (step.op == GGML_OP_MUL);
    }
    return fits ? Status::Ok() : Wrong("operands that do not fit");
  }

  const FfnRecipe& recipe_;
  const ModelFile& file_;
  const ExpertLayer& layer_;
};

}  // namespace

std::string FfnRecipe::Bytes() const {
  ByteWriter writer;
  writer.Number(n_in);
  writer.Number(static_cast<uint32_t>(steps.size()));
  for (const Step& step : steps) {
    writer.Number(static_cast<int32_t>(step.op));
    writer.Number(static_cast<int32_t>(step.matrix));
    writer.Text(step.bias);
    for (const int operand : step.operand) writer.Number(static_cast<int32_t>(operand));
    writer.Number(step.ne0);
    writer.Number(step.offset);
    writer.Text(std::string(step.params.begin(), step.params.end()));
  }
  const std::vector<uint8_t> bytes = writer.Take();
  return std::string(bytes.begin(), bytes.end());
}

Result<FfnRecipe> FfnRecipe::Decode(const std::string& bytes, const ModelFile& file,
                                    const ExpertLayer& layer) {
  ByteReader reader(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  FfnRecipe recipe;
  recipe.n_in = reader.Number<int64_t>();
  const auto n = reader.Number<uint32_t>();
  if (!reader.ok() || n == 0 || n > kMostSteps) return Wrong("no steps, or too many");
  for (uint32_t i = 0; i < n && reader.ok(); i++) {
    Step step;
    const auto op = reader.Number<int32_t>();
    if (op < 0 || op >= GGML_OP_COUNT) return Wrong("an unknown operation");
    step.op = static_cast<ggml_op>(op);
    step.matrix = reader.Number<int32_t>();
    step.bias = reader.Text();
    for (int& operand : step.operand) operand = reader.Number<int32_t>();
    step.ne0 = reader.Number<int64_t>();
    step.offset = reader.Number<uint64_t>();
    const std::string params = reader.Text();
    if (!reader.ok() || params.size() != step.params.size()) return Wrong("a step cut short");
    std::memcpy(step.params.data(), params.data(), params.size());
    recipe.steps.push_back(std::move(step));
  }
  if (!reader.ok() || reader.left() != 0) return Wrong("another length");
  REMOE_RETURN_IF_ERROR(Checker(recipe, file, layer).Check());
  return recipe;
}

}  // namespace remoe

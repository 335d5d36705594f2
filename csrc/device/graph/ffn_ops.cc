#include "device/graph/ffn_ops.h"

#include "device/streamed_model.h"
#include "gguf/model_file.h"

namespace remoe {

namespace {

// Longer chains than any architecture has between up and down (the longest, situ, has eight).
constexpr int kMaxDepth = 16;

struct Row {
  ggml_op op;
  FfnOp kind;
};
constexpr Row kTable[] = {
    {GGML_OP_MUL_MAT_ID, FfnOp::kProduct}, {GGML_OP_VIEW, FfnOp::kView},
    {GGML_OP_RESHAPE, FfnOp::kView},       {GGML_OP_PERMUTE, FfnOp::kView},
    {GGML_OP_TRANSPOSE, FfnOp::kView},     {GGML_OP_ADD_ID, FfnOp::kExpertBias},
    {GGML_OP_GLU, FfnOp::kElementwise},    {GGML_OP_UNARY, FfnOp::kElementwise},
    {GGML_OP_SQR, FfnOp::kElementwise},    {GGML_OP_MUL, FfnOp::kElementwise},
    {GGML_OP_SCALE, FfnOp::kElementwise},  {GGML_OP_CLAMP, FfnOp::kElementwise},
};

// Of a weight in one of our buffers. By name: a model that llama.cpp only measures has no origins.
std::optional<Matrix> MatrixOf(const ggml_tensor* product) {
  if (product->op != GGML_OP_MUL_MAT_ID || !InWeightBuffer(product->src[0])) return std::nullopt;
  return ExpertMatrixOf(product->src[0]->name);
}

// Whether `tensor` is computed from expert products alone; from down products only where allowed.
bool Descends(const ggml_tensor* tensor, bool down_allowed, int depth) {
  if (tensor == nullptr || depth > kMaxDepth) return false;
  if (const auto matrix = MatrixOf(tensor)) return down_allowed || *matrix != Matrix::kDown;
  if (tensor->op == GGML_OP_VIEW || tensor->op == GGML_OP_ADD_ID) {
    return Descends(tensor->src[0], down_allowed, depth + 1);
  }
  if (FfnOpOf(tensor) != FfnOp::kElementwise) return false;
  for (int i = 0; i < 2; i++) {
    if (tensor->src[i] != nullptr && !Descends(tensor->src[i], down_allowed, depth + 1))
      return false;
  }
  return tensor->src[0] != nullptr;
}

}  // namespace

FfnOp FfnOpOf(const ggml_tensor* op) {
  for (const Row& row : kTable) {
    if (row.op == op->op) return row.kind;
  }
  return FfnOp::kOther;
}

const TensorOrigin* ExpertProduct(const ggml_tensor* op) {
  return op->op == GGML_OP_MUL_MAT_ID ? OriginOf(op->src[0]) : nullptr;
}

bool IsExpertOp(const ggml_tensor* op) {
  if (op->op == GGML_OP_NONE) return true;
  if (op->op == GGML_OP_MUL_MAT_ID) return MatrixOf(op).has_value();
  if (op->op == GGML_OP_ADD_ID) return Descends(op->src[0], true, 0);
  return FfnOpOf(op) == FfnOp::kElementwise && Descends(op, false, 0);
}

}  // namespace remoe

// FfnRecipe: how a layer's expert FFN is computed, as a value: what a graph says, without the graph.
//
//     step   product with a matrix of the expert | half of a merged product | bias | element-wise
//     of     the input row (-1), or earlier steps by number
//
// Made from what PairRunner has found in a graph, sent as bytes, and made into a graph again by who
// computes rows for another machine. Decode() takes nothing on trust: operations, operands and every
// length are checked against the model's own file, since ggml ends the process over a wrong one.
//
// A plain value. One thread at a time.
#ifndef REMOE_DEVICE_COMPUTE_FFN_RECIPE_H_
#define REMOE_DEVICE_COMPUTE_FFN_RECIPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "device/graph/ggml_abi.h"
#include "gguf/model_file.h"

namespace remoe {

struct FfnRecipe {
  struct Step {
    ggml_op op = GGML_OP_NONE;
    int matrix = -1;   // of products: index into the layer's matrices
    std::string bias;  // of biases: the tensor's name
    int operand[2] = {-1, -1};
    int64_t ne0 = 0;      // values that it gives
    uint64_t offset = 0;  // of halves, in bytes
    std::array<uint8_t, GGML_MAX_OP_PARAMS> params{};
  };
  int64_t n_in = 0;
  std::vector<Step> steps;  // the last one is the result

  std::string Bytes() const;
  static Result<FfnRecipe> Decode(const std::string& bytes, const ModelFile& file,
                                  const ExpertLayer& layer);
  int64_t n_out() const { return steps.back().ne0; }
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_FFN_RECIPE_H_

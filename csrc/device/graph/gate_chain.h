// GateChain: how the weights of a token's chosen experts are made, read off the graph: from what the
// experts' rows are multiplied by, back to the router's values that were gathered by the ids.
//
// So the weights can be made again for other experts, or for fewer, with the operations that the
// architecture has: a softmax over the chosen, shares of their sum, a scale. Nothing is matched by name,
// and what cannot be followed is named. Keeps pointers into the graph that was looked at. Any thread.
#ifndef REMOE_DEVICE_GRAPH_GATE_CHAIN_H_
#define REMOE_DEVICE_GRAPH_GATE_CHAIN_H_

#include <string>
#include <vector>

#include "ggml.h"

namespace remoe {

struct GateChain {
  struct Step {
    enum class Kind { kSoftmax, kShare, kScale } kind = Kind::kScale;
    // kScale: x * a + b. kShare: x / sum, where the sum is clamped to [a, b] or scaled so before.
    float a = 1, b = 0;
    ggml_op sum_op = GGML_OP_NONE;  // of kShare: what happens to the sum
  };
  const ggml_tensor* product = nullptr;  // of the down matrices
  ggml_tensor* values = nullptr;         // [n_experts, n_tokens] floats, of every expert
  ggml_tensor* weights = nullptr;        // [1, k, n_tokens]
  std::vector<Step> steps;               // from the chosen experts' values to their weights

  // Whether weights are a softmax of the values, so that what compares experts is their difference.
  bool of_logits() const { return !steps.empty() && steps.front().kind == Step::Kind::kSoftmax; }
  // The weights of so many chosen experts, as a graph over their values [k, n_tokens].
  ggml_tensor* Build(ggml_context* context, ggml_tensor* chosen) const;
};

// Whether `node` multiplies what a layer's down product gave by something for each expert and token;
// then *chain has that product.
bool WeighsExperts(const ggml_tensor* node, GateChain* chain);

// Follows the weights of a node that WeighsExperts(). RETURNS: false where that is no gate, or not one
// that can be followed; only in the second case *why says what stands in the way.
bool FollowGate(const ggml_tensor* node, GateChain* chain, std::string* why);

// The router's product that the ids of an expert product were sorted by, perhaps after arithmetic on the
// ids; null where there is none.
const ggml_tensor* RouterOf(const ggml_tensor* product);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_GATE_CHAIN_H_

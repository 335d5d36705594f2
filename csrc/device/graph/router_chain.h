// RouterChain: how a layer's experts are chosen, read off the graph: from the ids of an expert
// product back over the sort, the gating function and its biases to the router's weights and the
// activations that they multiply.
//
// Looks at the graph and keeps no more than pointers to tensors: weights live as long as the
// llama_model, the activations as long as the graph runs. Any thread.
#ifndef REMOE_DEVICE_GRAPH_ROUTER_CHAIN_H_
#define REMOE_DEVICE_GRAPH_ROUTER_CHAIN_H_

#include <string>
#include <vector>

#include "ggml.h"

namespace remoe {

struct RouterChain {
  struct Step {
    enum class Kind { kAdd, kSoftmax, kSigmoid, kSoftplus, kSqrt } kind = Kind::kAdd;
    const ggml_tensor* bias = nullptr;  // of kAdd: [n_experts] floats
  };
  const ggml_tensor* weight = nullptr;  // [n_embd, n_experts]
  const ggml_tensor* norm = nullptr;   // [n_embd] floats that scale the normed activations; or null
  std::vector<Step> steps;             // from the product with `weight` to what is sorted
  const ggml_tensor* input = nullptr;  // [n_embd, n_tokens], of the graph that was looked at
  // The product with `weight` and the biases that follow at once, of that graph; steps from
  // `n_leading` on go from there. GPU backends fuse what comes after: between here and the sorted ids
  // nothing need be in memory.
  const ggml_tensor* logits = nullptr;
  size_t n_leading = 0;
};

// RETURNS: whether the ids of `product` are chosen in a way that can be followed; otherwise *why
// says what stands in the way.
bool FollowRouter(const ggml_tensor* product, int n_experts, RouterChain* chain, std::string* why);

// Goes one step on, in place, over one token's values of all experts. REQUIRES: a bias is in host
// memory.
void ApplyStep(const RouterChain::Step& step, float* values, int n_experts);

// The tensor that a chain of views and reshapes, or of rows gathered and set, begins with.
const ggml_tensor* Unreshaped(const ggml_tensor* tensor);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_ROUTER_CHAIN_H_

// RouterNotes: what a whole graph says of the routers of its expert products, kept for when the graph
// runs.
//
// Where the dense part computes on a GPU, the scheduler gives our products copies of their ids and
// activations, and a copy leads back to nothing. So each product's router is noted while the graph is
// whole, as the scheduler asks who supports the product: its logits, which lie in device memory then,
// and what happens to them on the way to the sort. Probabilities are computed from them here: GPU
// backends fuse gating and sorting, and what lies between is in no memory.
//
// A note holds as long as its product's graph does; a product of a new graph at the same address is
// noted anew before it runs. Any thread.
#ifndef REMOE_DEVICE_GRAPH_ROUTER_NOTES_H_
#define REMOE_DEVICE_GRAPH_ROUTER_NOTES_H_

#include <mutex>
#include <unordered_map>
#include <vector>

#include "device/graph/host_copies.h"
#include "device/graph/router_chain.h"
#include "device/graph/router_scores.h"

namespace remoe {

struct RouterNote {
  ggml_tensor* logits = nullptr;         // [n_experts, n_tokens]
  std::vector<RouterChain::Step> steps;  // from the logits to what is sorted; biases in host memory
  ScoreKind kind = ScoreKind::kLogits;   // of what is sorted

  // Writes the router's probabilities of tokens [begin, end) to probs[end - begin][n_experts], as
  // ReadProbabilities() does. REQUIRES: the logits are computed, and nothing has overwritten them.
  void ReadProbabilities(int64_t begin, int64_t end, float* probs) const;
};

class RouterNotes {
 public:
  // `copies` outlives this.
  RouterNotes(int n_layers, HostCopies* copies) : copies_(copies), in_host_memory_(n_layers) {}

  // Takes note of a product of that layer. Costs nothing from the second graph on where the layer's
  // router is in host memory: there, the graph that runs shows everything.
  void Note(int layer, const ggml_tensor* product);
  // RETURNS: null where nothing was noted. Stays valid while the product's graph does.
  const RouterNote* Find(const ggml_tensor* product) const;

 private:
  HostCopies* const copies_;
  mutable std::mutex mutex_;
  std::vector<bool> in_host_memory_;  // by layer
  std::unordered_map<const ggml_tensor*, RouterNote> notes_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_ROUTER_NOTES_H_

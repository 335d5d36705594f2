#include "device/compute/piece.h"

#include "device/graph/ffn_ops.h"

namespace remoe {

void CutByLayer(ggml_cgraph* graph, std::vector<Piece>* pieces) {
  pieces->clear();
  const int n = ggml_graph_n_nodes(graph);
  ggml_tensor** nodes = ggml_graph_nodes(graph);
  unsigned used = 0;
  for (int i = 0; i < n; i++) {
    const TensorOrigin* origin = ExpertProduct(nodes[i]);
    if (origin == nullptr) continue;
    bool fresh = pieces->empty();
    if (!fresh) {
      const Piece& last = pieces->back();
      fresh = last.origin().model != origin->model || last.origin().layer != origin->layer ||
              last.ids() != nodes[i]->src[2] || (used & 1u << origin->matrix) != 0;
    }
    if (fresh) {
      if (!pieces->empty()) pieces->back().end = i;
      Piece piece;
      piece.begin = pieces->empty() ? 0 : i;
      pieces->push_back(std::move(piece));
      used = 0;
    }
    used |= 1u << origin->matrix;
    pieces->back().products.push_back(nodes[i]);
  }
  if (!pieces->empty()) pieces->back().end = n;
}

}  // namespace remoe

// Piece: a run of a graph's nodes whose products all belong to one layer's event.
//
// llama.cpp's scheduler hands over one graph for a whole expert FFN, or for several layers' where
// nothing else lies between, or for part of one where other operations cut it. Pieces are cut so
// that each can be placed and computed by itself.
//
// Plain values over the graph's nodes, valid while it runs; used by the thread that runs it.
#ifndef REMOE_DEVICE_COMPUTE_PIECE_H_
#define REMOE_DEVICE_COMPUTE_PIECE_H_

#include <vector>

#include "device/graph/weight_buffer.h"

namespace remoe {

struct Piece {
  int begin = 0, end = 0;  // nodes
  std::vector<ggml_tensor*> products;

  const TensorOrigin& origin() const { return *OriginOf(products.front()->src[0]); }
  const ggml_tensor* ids() const { return products.front()->src[2]; }
};

// Cuts the graph before each product that belongs to another event than the one before it. Without
// any product there are no pieces; otherwise every node is in one.
void CutByLayer(ggml_cgraph* graph, std::vector<Piece>* pieces);

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_PIECE_H_

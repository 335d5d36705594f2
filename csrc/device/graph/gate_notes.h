// GateNotes: what whole graphs say of the weights of their layers' experts, kept for when they run.
//
// What the rows are multiplied by comes after them, where a piece that runs cannot look: so it is noted
// as the scheduler asks who supports the multiplication. A note holds as long as its graph does; one of
// a new graph at the same address is made anew before that runs. Any thread.
#ifndef REMOE_DEVICE_GRAPH_GATE_NOTES_H_
#define REMOE_DEVICE_GRAPH_GATE_NOTES_H_

#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/graph/gate_chain.h"

namespace remoe {

struct GateNote {
  GateChain chain;
  int layer = 0;
  const ggml_tensor* router = nullptr;  // as RouterOf() gives it; compared, never looked into
  bool proven = false;  // the chain has given the weights that the graph has, bit by bit
};

class GateNotes {
 public:
  explicit GateNotes(int n_layers);
  ~GateNotes();
  GateNotes(const GateNotes&) = delete;
  GateNotes& operator=(const GateNotes&) = delete;

  // Takes note, in all that live, of a product with experts that are not streamed: where a router of
  // ours chooses those as well, they would not follow what becomes of the others.
  static void NoteOthers(const ggml_tensor* product);

  // Takes note of a node that WeighsExperts().
  void Note(const ggml_tensor* node, const GateChain& found, int layer);
  // RETURNS: null where nothing was noted. Valid as long as the graph is.
  GateNote* Find(const ggml_tensor* ids);
  // Why the weights of some of the first n_layers cannot be made again; empty where all can. `layer` is it.
  std::string WhyNot(int n_layers, int* layer) const;

 private:
  void NoteOther(const ggml_tensor* router);

  mutable std::mutex mutex_;
  std::vector<bool> seen_;                                  // by layer
  std::vector<std::string> why_not_;                        // by layer
  std::unordered_map<const ggml_tensor*, GateNote> notes_;  // by the ids of the layer's products
};

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_GATE_NOTES_H_

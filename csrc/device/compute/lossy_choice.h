// LossyChoice: has a model's Dial decide on a layer's step, and the graph agree with it: the ids that
// the layer's products take, and the weights that their rows are multiplied by later.
//
// Weights are made again by the architecture's own operations over the experts that are left, so fewer
// experts weigh what they would weigh had the router chosen so few; skipped ones weigh nothing. Before a
// graph's weights are first written over, the ones in it are made again and have to come out the same.
//
// Owned by one executor; one thread. The graph's values are written, never the graph.
#ifndef REMOE_DEVICE_COMPUTE_LOSSY_CHOICE_H_
#define REMOE_DEVICE_COMPUTE_LOSSY_CHOICE_H_

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "device/compute/layer_step.h"
#include "device/graph/gate_notes.h"
#include "ggml-backend.h"

namespace remoe {

class StreamedModel;

class LossyChoice {
 public:
  LossyChoice() = default;
  ~LossyChoice();
  LossyChoice(const LossyChoice&) = delete;
  LossyChoice& operator=(const LossyChoice&) = delete;

  // Decides on a step that has been routed. `may_be_coarse`: experts in the coarse form can be
  // computed with. RETURNS: what stands in the way of it.
  Status Choose(StreamedModel* model, const LayerStep& step, bool may_be_coarse);
  // What was decided: whether anything is as it was not, and then ids [n_tokens][k] and marks of those
  // that are skipped, whose ids are that of the token's strongest.
  bool changed() const { return changed_; }
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<uint8_t>& skipped() const { return skipped_; }
  // [n_tokens][k] marks of those for which the coarse form will do, and is resident or to be read.
  const std::vector<uint8_t>& coarse() const { return coarse_; }
  bool any_skipped() const { return any_skipped_; }

 private:
  Status Weigh(const GateChain& chain, int n, std::vector<float>* weights);
  Status Prove(GateNote* note, const LayerStep& step);
  Status WriteWeights(const GateChain& chain, int token, int k);
  void WriteIds(const LayerStep& step);

  ggml_backend_t cpu_ = nullptr;  // of one thread: what is computed here is a few numbers
  bool changed_ = false, any_skipped_ = false;
  std::vector<int32_t> ids_;
  std::vector<uint8_t> skipped_, coarse_, present_;
  std::vector<float> chosen_, weights_;
  std::vector<uint8_t> graph_memory_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_LOSSY_CHOICE_H_

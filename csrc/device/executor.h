// Executor: runs pieces of a graph whose weights are on storage.
//
// With every expert resident, a batch's piece runs as llama.cpp built it, its weight tensors
// replaced by views of the slab and its expert ids by slots. With some missing, or where one token
// is faster so, it runs expert by expert, as they arrive (see PairRunner): the same products row by
// row, hence the same bits. The graph is as it was when Run returns.
//
// Owned by one backend; one thread.
#ifndef REMOE_DEVICE_EXECUTOR_H_
#define REMOE_DEVICE_EXECUTOR_H_

#include <vector>

#include "device/device.h"
#include "device/lookahead.h"
#include "device/pair_runner.h"
#include "runtime/expert_store.h"

namespace remoe {

class Executor {
 public:
  explicit Executor(ggml_backend_t cpu) : cpu_(cpu), pairs_(cpu) {}
  ggml_status Run(ggml_cgraph* graph);

 private:
  // A run of nodes whose products all belong to one layer's event.
  struct Segment {
    int begin = 0, end = 0;
    std::vector<ggml_tensor*> products;
  };
  void Split(ggml_cgraph* graph);
  ggml_status RunSegment(ggml_cgraph* graph, const Segment& segment);
  // Reads the routed ids; RETURNS false when one is out of range.
  bool ReadIds(const ggml_tensor* ids, int n_experts);
  // Describes to the model what the segment's layer was routed to; probabilities included, where
  // the graph has them and someone wants them.
  Event Describe(const ggml_tensor* product, const TensorOrigin& origin);
  // Orders experts_ by their last use in the batch and marks those that its end did not use.
  void OrderByLastUse(const ExpertStore& store);
  // Puts the spent ones of experts_ in front. RETURNS: how many they are.
  int SpentFirst();
  void IndexExperts();
  // One layer: its event, or, with more experts than fit, its waves.
  ggml_status RunLayer(ggml_cgraph* graph, const Segment& segment, StreamedModel* model,
                       const Event& event);
  void MarkUsed(const Segment& segment, StreamedModel* model);
  // Runs the segment for the pairs whose experts are in experts_, which are those of `event`.
  // `rest`: the experts of the waves that follow.
  ggml_status RunEvent(ggml_cgraph* graph, const Segment& segment, StreamedModel* model,
                       Event event, const uint16_t* rest = nullptr, size_t n_rest = 0);
  ggml_status RunOpenEvent(ggml_cgraph* graph, const Segment& segment, StreamedModel* model);
  ggml_status RunPairs(ExpertStore* store, Status* failure);
  void SetReady(const std::vector<int>& indices);
  void CollectReadyPairs();
  // Whether the segment can be run by pairs; asked of the runner once, before anything is computed.
  bool ByPairs(ggml_cgraph* graph, const Segment& segment);
  ggml_status ComputeWhole(ggml_cgraph* graph, const Segment& segment, const StreamedModel& model);

  ggml_backend_t cpu_;
  PairRunner pairs_;
  enum class Fit { kUnknown, kYes, kNo } fit_ = Fit::kUnknown;  // of the segment being run
  std::vector<Segment> segments_;
  size_t k_ = 1;                   // experts of a token
  std::vector<int32_t> ids_;       // [n_tokens, k], dense
  std::vector<uint16_t> experts_;  // distinct, in order of first use
  std::vector<uint16_t> routed_;   // ids_ as an event has them
  std::vector<float> probs_;       // [n_prob_tokens, n_experts]
  std::vector<int32_t> index_of_;  // expert -> index into experts_, or -1
  std::vector<int32_t> last_use_;  // expert -> token of the batch
  std::vector<bool> spent_;        // by expert
  LayerRun run_;                   // the layer being run
  std::vector<int32_t> slots_;     // [n_tokens, k]
  std::vector<bool> ready_;        // by index into experts_
  std::vector<Pair> work_;
  std::vector<uint8_t> graph_memory_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_EXECUTOR_H_

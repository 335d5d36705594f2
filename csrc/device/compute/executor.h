// Executor: runs pieces of a graph whose weights are on storage.
//
// Each piece becomes a LayerStep, which goes through routing, placing and computing once. With every
// expert resident, a batch's piece runs as llama.cpp built it, its weight tensors replaced by views
// of the slab and its expert ids by slots. With some missing, or where one token is faster so, it
// runs expert by expert, as they arrive (see PairRunner): the same products row by row, hence the
// same bits. On a GPU a batch waits for all its experts, so that kernels see it whole. The graph is
// as it was when Run returns.
//
// Owned by one backend; one thread. Steps of several backends over one model take turns.
#ifndef REMOE_DEVICE_COMPUTE_EXECUTOR_H_
#define REMOE_DEVICE_COMPUTE_EXECUTOR_H_

#include <memory>
#include <vector>

#include "device/compute/layer_step.h"
#include "device/compute/lossy_choice.h"
#include "device/compute/mixed_pairs.h"
#include "device/compute/pair_runner.h"
#include "device/compute/piece.h"
#include "device/graph/weight_buffer.h"

namespace remoe {

class Executor {
 public:
  // Computes on `gpu`, or, without one, on `cpu`; both outlive this. `scores_are_kept`: the router's
  // scores are still in memory when a piece runs.
  explicit Executor(ggml_backend_t cpu, bool scores_are_kept = true, ggml_backend_t gpu = nullptr);
  ~Executor();
  ggml_status Run(ggml_cgraph* graph);
  // The same with the model's dial. Apart from Run(), so that a run without loss asks for no dial.
  ggml_status RunLossy(ggml_cgraph* graph);

 private:
  // The piece that runs.
  struct Job {
    ggml_cgraph* graph;
    const Piece* piece;
    StreamedModel* model;
  };
  template <bool kLossy>
  ggml_status RunAs(ggml_cgraph* graph);
  template <bool kLossy>
  ggml_status RunPiece(const Job& job);
  // Has the dial decide on the step, which has been routed and not described yet.
  Status ChooseAnew(const Job& job);
  // Whether experts of the step may be in the coarse form: those that are decoded for one token are
  // computed by pairs, which know their form. Fails where a graph has no such pairs.
  Status PrepareForms(const Job& job, bool* may_be_coarse);
  // Says which of the step's experts are to be read in which form.
  void SettleForms(const Job& job, bool may_be_coarse);
  void Complete(const Job& job, Event* event);
  Status RunOn(const Job& job);
  void MarkUsed(const Job& job);
  Status RunLayer(const Job& job, const Event& event);
  // Offers the step's experts to sources that compute them elsewhere.
  void SendElsewhere(const Job& job);
  void EndElsewhere(const Job& job);
  // Waits for what is computed elsewhere. What failed there is unplaced afterwards.
  Status AwaitElsewhere(const Job& job);
  // Runs these experts of the step: in one event, or, where they are too many, in waves.
  Status RunExperts(const Job& job, const Event& event, std::vector<uint16_t>* experts);
  Status RunEvent(const Job& job, Event event, std::vector<uint16_t>* wave, const uint16_t* rest,
                  size_t n_rest);
  // Computes what the open event has placed.
  Status Compute(const Job& job);
  Status ComputePairs(const Job& job);
  Status ComputeWhole(const Job& job);
  // Waits if need be, takes in what has arrived; rows from elsewhere go where the graph wants them.
  Status TakeArrivals(const Job& job, bool wait, bool all_but_down);
  // Whether the piece can be run by pairs; asked of the runner once, before anything is computed.
  bool ByPairs(const Job& job);
  ggml_backend_t backend() const { return gpu_ != nullptr ? gpu_ : cpu_; }
  // A tensor as it is where the CPU reads it; of one on the GPU, a copy in *bytes.
  ggml_tensor OnHost(const ggml_tensor* tensor, std::vector<uint8_t>* bytes) const;
  // Gives ids the step's slots as data, where they are computed from.
  bool PlaceSlots(ggml_tensor* ids);
  // The slot of the layer's expert 0, where all of the step lie in their order from it; else kNoSlot.
  SlotId OwnSlots(const StreamedModel& model) const;
  // What ggml said, as a Status.
  static Status Failed(ggml_status status);
  ggml_status Refuse(StreamedModel* model, const Status& status, bool recorded);

  ggml_backend_t cpu_, gpu_;
  const bool scores_are_kept_;
  const std::unique_ptr<PairRunner> own_pairs_;
  PairRunner* pairs_;                         // those, or, in the lossy path, the mixed ones
  std::unique_ptr<MixedPairs> mixed_pairs_;   // made when first needed
  ggml_backend_buffer_t slot_ids_ = nullptr;  // on the GPU
  std::vector<uint8_t> ids_on_host_, input_on_host_;  // of the step, where it is on the GPU
  ggml_tensor host_input_{};
  std::vector<Piece> pieces_;
  LayerStep step_;  // of the piece that runs
  LossyChoice lossy_;
  bool left_out_ = false;  // pairs of the step are not computed
  enum class Fit { kUnknown, kYes, kNo } fit_ = Fit::kUnknown;
  // Memory that is kept from one piece to the next.
  std::vector<Arrival> arrived_;
  std::vector<uint16_t> here_, wave_, coarse_;
  std::vector<float> probs_;  // [n_prob_tokens, n_experts]
  std::vector<uint8_t> graph_memory_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_EXECUTOR_H_

// PrefetchPlanner: which experts the next layers will want, and whether to prefetch them.
//
// The routers of the next layers are applied to what the present layer's router sees: between
// layers the stream of activations changes little, so that this names most of the next layer's
// experts. How often it is right, rank by rank, is counted as the model runs (Calibration), and
// whether prefetch pays is tried (Governor). For a long prompt, which takes nearly all experts
// of a layer, whole layers are wanted instead, without asking a router.
//
// Learns the routers from graphs as llama.cpp hands them out, before any of them runs. Holds no copy
// of a weight, but of routers on a GPU once prefetch has started. One per model; one thread.
#ifndef REMOE_DEVICE_COMPUTE_PREFETCH_PLANNER_H_
#define REMOE_DEVICE_COMPUTE_PREFETCH_PLANNER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/compute/layer_step.h"
#include "device/graph/host_copies.h"
#include "device/graph/router_chain.h"
#include "ggml-backend.h"
#include "prefetch/calibration.h"
#include "prefetch/governor.h"
#include "runtime/expert_store.h"

namespace remoe {

class PrefetchPlanner {
 public:
  // n_trunk: layers, from the first, that a token runs through; those behind predict further tokens,
  // and run when somebody wants a guess: nothing is read ahead of them. `copies` outlives this.
  PrefetchPlanner(const std::vector<ExpertLayer>* layers, int n_trunk, int n_used,
                  HostCopies* copies);

  // REQUIRES: not started, and no step is under way.
  void Start(PrefetchMode mode, ExpertStore* store);
  // The store goes. What was learned of routers stays.
  void Stop();
  bool started() const { return governor_ != nullptr; }
  // Whether it has a part in that layer's steps.
  bool PlansFor(int layer) const { return started() && layer < n_trunk_; }

  // What Start() copies of the routers learned so far: those that are not in host memory.
  uint64_t BytesToCopy() const;

  // Takes note of a layer's router.
  void Learn(int layer, const ggml_tensor* product);

  // A layer's event is about to begin: judges what was predicted of it. `decode`: its tokens belong
  // to so many conversations, and are no prompt.
  void BeginLayer(const LayerStep& step, bool decode);
  // Its first reads are under way: plans what to read behind them. `rest`: of the same layer, in
  // the events (waves) that follow. `cpu` multiplies.
  void Plan(const LayerStep& step, const uint16_t* rest, size_t n_rest, ggml_backend_t cpu);
  void EndLayer();
  // A layer begins that it has no part in: neither its time nor its misses count.
  void Beside();

  bool batch_reads() const { return started() && governor_->batch_reads(); }
  const Governor& governor() const { return *governor_; }
  // The share of a decode step's predictions at the first rank that come true, one layer ahead.
  float first_rank_certainty() const;
  // Why the next layers' experts cannot be predicted; empty when they can, or nothing ran yet.
  const std::string& why_not() const { return why_not_; }
  uint64_t predict_ns() const { return predict_ns_; }

 private:
  struct Prediction {
    int n_tokens = 0;              // that the layer's event will have, if it is as expected
    std::vector<int> tokens;       // of the batch, whose predictions will be judged
    std::vector<uint16_t> ranked;  // [tokens, n_ranked]
    std::vector<int> n_takers;     // by expert: tokens predicted to take it; empty for no batch
  };
  void BringToHost(RouterChain* router);
  bool Predictable(int layer, int target) const;
  void Predict(const LayerStep& step, int distance, float least, ggml_backend_t cpu);
  // Fills activations_ with what the target's router would see of these tokens, then scores_.
  void Rescale(const RouterChain& router, const std::vector<int>& tokens);
  bool Multiply(const RouterChain& router, int n_tokens, ggml_backend_t cpu);
  void Judge(const LayerStep& step, int distance, Prediction* made);
  void WantWhole(int layer);
  void CountStep();

  const std::vector<ExpertLayer>* layers_;
  const int n_trunk_, n_used_;
  HostCopies* const copies_;
  int n_experts_ = 0;
  ExpertStore* store_ = nullptr;
  std::unique_ptr<Governor> governor_;
  std::unique_ptr<Calibration> calibration_;
  std::vector<RouterChain> routers_;     // by layer; without a weight where it is not known
  std::vector<Prediction> predictions_;  // [layer][distance - 1] of the present step
  RouterChain here_;                     // of the graph that runs
  bool readable_ = false;                // here_ and its activations
  PrefetchPlan plan_;                    // for the layers after the present one
  bool planned_ = false;
  std::string why_not_;

  int last_layer_ = -1;
  bool beside_ = false;  // what has been counted since the last step was not a step's
  int last_tokens_ = 0;
  bool decoding_ = false;   // the step under way
  int decoded_tokens_ = 0;  // of it
  // Of a batch, llama.cpp takes through the last layer only the tokens whose logits are asked for.
  bool last_layer_takes_one_ = true;
  std::chrono::steady_clock::time_point step_began_, layer_ended_;
  StoreCounts counted_;  // as of the last step, or of the last layer of a batch
  std::atomic<uint64_t> predict_ns_{0};

  std::vector<float> activations_;  // [tokens, n_embd]
  std::vector<uint8_t> graph_memory_;
  std::vector<float> scores_;     // [tokens, n_experts]
  std::vector<uint16_t> order_;   // one token's experts
  std::vector<float> untouched_;  // log of the probability that no token takes the expert
  std::vector<float> doubt_;      // by rank, log of the probability that it is not taken
  std::vector<bool> taken_;       // by expert, of the layer whose event begins
  std::vector<std::pair<float, uint16_t>> likely_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_PREFETCH_PLANNER_H_

// LayerStep: one layer of one step, as a value that is made once and passed along.
//
//     routed    Route(): which token takes which experts
//     placed    Place(): the experts of an event, or of one wave of it, have their slots;
//               Send(): others are computed elsewhere
//     computed  Take(): what has arrived; Ready()/AllButDown(): the pairs that can be run for it
//
// An expert goes kUnused -> kRouted -> kAwaited -> (kAllButDown) -> kThere -> kComputed, or
// kRouted -> kSent -> kComputed; one that does not come from elsewhere goes back to kRouted. Knows
// ids and slots only: no memory of weights, no graph. Its vectors are kept from one layer to the
// next, so that a token allocates nothing. One thread.
#ifndef REMOE_DEVICE_COMPUTE_LAYER_STEP_H_
#define REMOE_DEVICE_COMPUTE_LAYER_STEP_H_

#include <cstdint>
#include <vector>

#include "cache/cache.h"
#include "device/compute/pair_runner.h"
#include "ggml.h"
#include "runtime/arrivals.h"

namespace remoe {

class LayerStep {
 public:
  // --- routed ---
  // Reads the routed ids [k, n_tokens] of an expert product, which `ids` has in host memory.
  // RETURNS: false when one is out of range.
  bool Route(int layer, int n_experts, const ggml_tensor* product, const ggml_tensor* ids);
  bool Route(int layer, int n_experts, const ggml_tensor* product) {
    return Route(layer, n_experts, product, product->src[2]);
  }
  int layer() const { return layer_; }
  int n_tokens() const { return n_tokens_; }
  int k() const { return k_; }
  int n_experts() const { return static_cast<int>(state_.size()); }
  // What the product multiplies, [n_embd, 1, n_tokens], in host memory if SetInput() was told so.
  const ggml_tensor* input() const { return input_; }
  void SetInput(const ggml_tensor* input) { input_ = input; }
  const ggml_tensor* product() const { return product_; }
  const std::vector<int32_t>& ids() const { return ids_; }  // [n_tokens][k]
  // Distinct, in the order of first use, or of last use once ordered so.
  const std::vector<uint16_t>& experts() const { return experts_; }
  // The step's event, without its place in the run. Points into this.
  Event Describe();
  // Other experts for the step's tokens, as Route() would have read them. Pairs that are marked in
  // `left_out` (null: none) are of no expert: nobody places or computes them, and where there are such,
  // Describe() gives ids that mean nothing.
  void Reroute(const std::vector<int32_t>& ids, const std::vector<uint8_t>* left_out);
  // Orders experts() by their last use in the batch, and marks as expendable those that its end did
  // not use and that are more than the cache can keep of a layer.
  void OrderByLastUse(const Geometry& geometry);
  // Puts the expendable ones of a wave in front. RETURNS: how many they are.
  int ExpendableFirst(std::vector<uint16_t>* wave) const;

  // --- placed ---
  // These experts have slots now and are awaited; those of an earlier wave have none any more.
  void Place(const std::vector<Placement>& placements);
  // That expert is computed elsewhere.
  void Send(uint16_t expert);
  // Appends those that are neither placed nor computed nor sent.
  void Unplaced(std::vector<uint16_t>* experts) const;
  int n_awaited() const { return n_awaited_; }  // placed, not there
  int n_sent() const { return n_sent_; }
  // Every expert of the step has its slot.
  bool all_placed() const { return n_placed_ == static_cast<int>(experts_.size()); }
  // Every expert of the step has its slot, and its weights are there.
  bool all_there() const { return n_there_ == static_cast<int>(experts_.size()); }
  const std::vector<int32_t>& slots() const { return slots_; }  // [n_tokens][k], of the placed ones

  // --- computed ---
  // Takes note of what has arrived. RETURNS: the failure of an expert that was placed. One that was
  // sent and failed is unplaced again.
  Status Take(const std::vector<Arrival>& arrivals);
  // Whether that arrival brings rows that are still wanted.
  bool Wants(const Arrival& arrival, int64_t n_out) const;
  void MarkComputed(uint16_t expert);
  // Pairs of the experts whose weights are there and that were not computed yet, by slot; they
  // count as computed from here on.
  const std::vector<Pair>& Ready();
  // The same of those that lack down alone.
  const std::vector<Pair>& AllButDown();
  // An expert's pairs, in the order of the tokens.
  const std::vector<Pair>& PairsOf(uint16_t expert);

 private:
  enum class State : uint8_t { kUnused, kRouted, kSent, kAwaited, kAllButDown, kThere, kComputed };
  template <typename Which>
  const std::vector<Pair>& Collect(const Which& which);

  int layer_ = 0;
  int n_tokens_ = 0;
  int k_ = 1;
  const ggml_tensor* product_ = nullptr;
  const ggml_tensor* input_ = nullptr;
  std::vector<int32_t> ids_, slots_;
  std::vector<uint16_t> experts_, routed_;
  std::vector<State> state_;                // by expert
  std::vector<SlotId> slot_of_;             // by expert
  std::vector<bool> expendable_;            // by expert
  std::vector<int32_t> last_use_;           // by expert: token of the batch
  std::vector<uint16_t> new_all_but_down_;  // announced since the last AllButDown()
  int n_placed_ = 0, n_awaited_ = 0, n_sent_ = 0, n_there_ = 0;
  std::vector<Pair> pairs_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_LAYER_STEP_H_

// Calibration: how often a prediction comes true, by layer, by how many layers before its use it
// was made, and by the rank that the predicted expert had. For a prompt's batch the same for whole
// layers: how often an expert that so many tokens were predicted to take was taken by any.
//
// Counted while the model runs: a layer with few observations of its own leans on what all layers
// saw at that distance, and those on a cautious prior. Old observations fade, so that a change of
// subject shows. Ranks from n_ranked() on share one count.
//
// Owned by one planner. Not thread-safe. No allocation after construction.
#ifndef REMOE_PREFETCH_CALIBRATION_H_
#define REMOE_PREFETCH_CALIBRATION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace remoe {

class Calibration {
 public:
  static constexpr int kMaxDistance = 2;

  // n_used: experts that a token takes in a layer.
  Calibration(int n_layers, int n_experts, int n_used);

  int n_ranked() const { return n_ranked_; }

  // One token's prediction, the n_ranked() likeliest experts in order, against the n_used that it
  // took. `distance`: 1 or 2 layers.
  void Observe(int layer, int distance, const uint16_t* ranked, const int32_t* routed);

  // One expert of a batch: predicted for n_tokens of those that were looked at; was it taken?
  void ObserveBatch(int distance, int n_tokens, bool taken);
  float BatchCertainty(int distance, int n_tokens) const;

  // The share of predictions at that rank that came true, in (0, 1).
  float Certainty(int layer, int distance, int rank) const;

 private:
  struct Count {
    float hits = 0, trials = 0;
  };
  static void Add(Count* count, float hits, float trials);
  size_t At(int layer, int distance, int rank) const {
    return (static_cast<size_t>(layer) * kMaxDistance + (distance - 1)) * (n_ranked_ + 1) + rank;
  }

  static constexpr int kBuckets = 5;  // by tokens: 0, 1, 2, up to 5, more
  static int BucketOf(int n_tokens);

  int n_layers_, n_experts_, n_used_, n_ranked_;
  Count batches_[kMaxDistance][kBuckets];
  std::vector<Count> counts_;  // [n_layers + 1][distance][n_ranked + 1]; the last layer is all
};

}  // namespace remoe

#endif  // REMOE_PREFETCH_CALIBRATION_H_

#include "prefetch/calibration.h"

#include <algorithm>

namespace remoe {

namespace {

constexpr float kMostTrials = 512;  // beyond, both counts are halved
constexpr float kOwnWeight = 8;     // trials that what all layers saw is worth to one layer
constexpr float kPriorWeight = 4;
constexpr float kBatchPrior[] = {0.3f, 0.7f, 0.8f, 0.9f, 0.98f};

}  // namespace

Calibration::Calibration(int n_layers, int n_experts, int n_used)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      n_used_(n_used),
      n_ranked_(std::min(n_experts, 2 * n_used)),
      counts_(static_cast<size_t>(n_layers + 1) * kMaxDistance * (n_ranked_ + 1)) {}

void Calibration::Add(Count* count, float hits, float trials) {
  count->hits += hits;
  count->trials += trials;
  if (count->trials < kMostTrials) return;
  count->hits /= 2;
  count->trials /= 2;
}

void Calibration::Observe(int layer, int distance, const uint16_t* ranked, const int32_t* routed) {
  const int32_t* end = routed + n_used_;
  int found = 0;
  for (int rank = 0; rank < n_ranked_; rank++) {
    const bool hit = std::find(routed, end, static_cast<int32_t>(ranked[rank])) != end;
    found += hit ? 1 : 0;
    Add(&counts_[At(layer, distance, rank)], hit ? 1.0f : 0.0f, 1);
    Add(&counts_[At(n_layers_, distance, rank)], hit ? 1.0f : 0.0f, 1);
  }
  const int rest = n_experts_ - n_ranked_;
  if (rest == 0) return;
  const float share = static_cast<float>(n_used_ - found) / static_cast<float>(rest);
  Add(&counts_[At(layer, distance, n_ranked_)], share, 1);
  Add(&counts_[At(n_layers_, distance, n_ranked_)], share, 1);
}

int Calibration::BucketOf(int n_tokens) {
  return n_tokens <= 2 ? n_tokens : n_tokens <= 5 ? 3 : 4;
}

void Calibration::ObserveBatch(int distance, int n_tokens, bool taken) {
  Add(&batches_[distance - 1][BucketOf(n_tokens)], taken ? 1.0f : 0.0f, 1);
}

float Calibration::BatchCertainty(int distance, int n_tokens) const {
  const int bucket = BucketOf(n_tokens);
  const Count& count = batches_[distance - 1][bucket];
  return (count.hits + kPriorWeight * kBatchPrior[bucket]) / (count.trials + kPriorWeight);
}

float Calibration::Certainty(int layer, int distance, int rank) const {
  rank = std::min(rank, n_ranked_);
  const float evenly = static_cast<float>(n_used_) / static_cast<float>(n_experts_);
  const float prior = rank < n_used_ ? std::max(0.5f, evenly) : evenly / 2;
  const Count& all = counts_[At(n_layers_, distance, rank)];
  const Count& own = counts_[At(layer, distance, rank)];
  const float common = (all.hits + kPriorWeight * prior) / (all.trials + kPriorWeight);
  const float share = (own.hits + kOwnWeight * common) / (own.trials + kOwnWeight);
  return std::clamp(share, 1e-6f, 1 - 1e-6f);
}

}  // namespace remoe

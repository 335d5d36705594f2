#include "cache/resident_ranks.h"

#include "cache/reuse_rows.h"

namespace remoe {

ResidentRanks::ResidentRanks(int n_layers, int n_experts)
    : n_layers_(n_layers), n_experts_(n_experts), stride_(Stride(n_experts)) {
  const size_t layers = static_cast<size_t>(n_layers);
  ranks_.assign(layers * stride_, kUnavailable);
  scored_.assign(layers * stride_, 0);
  least_.assign(layers, kUnavailable);
  stale_.assign(layers, 0);
}

void ResidentRanks::Score(int layer, const float* score) {
  int32_t* scored = &scored_[At(layer, 0)];
  int32_t* ranks = &ranks_[At(layer, 0)];
  rows::ToRanks(score, scored, stride_);
  for (int j = 0; j < n_experts_; j++) {
    ranks[j] = ranks[j] == kUnavailable ? kUnavailable : scored[j];
  }
  stale_[layer] = 1;
}

void ResidentRanks::Raise(int layer, int expert, float by) {
  int32_t& scored = scored_[At(layer, expert)];
  scored = rows::ToRank(static_cast<float>(scored) / rows::kRankScale + by);
  if (offered(layer, expert)) Offer(layer, expert);
}

ExpertId ResidentRanks::Least() {
  int from = 0;
  for (int layer = 0; layer < n_layers_; layer++) {
    if (stale_[layer]) {
      least_[layer] = rows::Least(&ranks_[At(layer, 0)], stride_);
      stale_[layer] = 0;
    }
    if (least_[layer] < least_[from]) from = layer;
  }
  const int32_t* ranks = &ranks_[At(from, 0)];
  int expert = 0;
  while (ranks[expert] != least_[from]) expert++;
  return static_cast<ExpertId>(from) * n_experts_ + expert;
}

}  // namespace remoe

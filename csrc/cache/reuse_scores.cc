// Scores as others give and read them: what a prompt is expected to use, who of a prompt's experts
// leaves first, and what the policy makes of each expert, for who places experts beyond this cache.
#include <algorithm>

#include "cache/reuse_biased.h"
#include "cache/reuse_rows.h"

namespace remoe {

bool ReuseBiasedPolicy::Expect(const float* bonus) {
  // The scores of every layer change at once: the prompt's first layer already pushes out others.
  for (int layer = 0; layer < geometry_.n_layers; layer++) {
    float* expected = &expected_[Row(layer)];
    for (int j = 0; j < geometry_.n_experts; j++) {
      const float now = bonus == nullptr ? 0 : bonus[layer * geometry_.n_experts + j];
      ranks_.Raise(layer, j, now - expected[j]);
      expected[j] = now;
    }
  }
  expecting_ = bonus != nullptr;
  return true;
}

bool ReuseBiasedPolicy::LeastFirst(int layer, uint16_t* experts, int n) {
  const int32_t* scored = ranks_.scored(layer);
  std::stable_sort(experts, experts + n,
                   [scored](uint16_t a, uint16_t b) { return scored[a] < scored[b]; });
  return true;
}

bool ReuseBiasedPolicy::Scores(std::vector<float>* scores) const {
  scores->clear();
  for (int layer = 0; layer < geometry_.n_layers; layer++) {
    for (int j = 0; j < geometry_.n_experts; j++) {
      scores->push_back(static_cast<float>(ranks_.scored(layer)[j]) / rows::kRankScale);
    }
  }
  return true;
}

}  // namespace remoe

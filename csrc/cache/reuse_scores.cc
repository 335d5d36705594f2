// What the policy makes of each expert, for who places experts beyond this cache.
#include "cache/reuse_biased.h"
#include "cache/reuse_rows.h"

namespace remoe {

bool ReuseBiasedPolicy::Scores(std::vector<float>* scores) const {
  scores->clear();
  for (int layer = 0; layer < geometry_.n_layers; layer++) {
    for (int j = 0; j < geometry_.n_experts; j++) {
      scores->push_back(static_cast<float>(scored_[Row(layer) + j]) / rows::kRankScale);
    }
  }
  return true;
}

}  // namespace remoe

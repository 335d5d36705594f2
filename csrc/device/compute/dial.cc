#include "device/compute/dial.h"

#include <algorithm>
#include <cmath>

namespace remoe {

bool DialSettings::valid() const {
  const auto in_range = [](float value) { return value >= 0 && value < 1; };
  return in_range(swap_near) && in_range(skip_cold) && in_range(skip_small) &&
         in_range(coarse_below);
}

bool Dial::Near(const Said& said, int32_t other, int32_t chosen) const {
  const float is = said.values[other], was = said.values[chosen];
  const float ratio = said.logits ? std::exp(is - was) : (was > 0 ? is / was : 0);
  return ratio >= 1 - settings_.swap_near;
}

int32_t Dial::BestResident(const Said& said, const std::vector<uint8_t>& present, bool coarse_too,
                           int k, const int32_t* ids) const {
  int32_t best = -1;
  for (int32_t e = 0; e < static_cast<int32_t>(present.size()); e++) {
    if (!IsPresent(present[e], coarse_too) || !(said.scores[e] > -INFINITY)) continue;
    if (best >= 0 && said.scores[e] <= said.scores[best]) continue;
    if (std::find(ids, ids + k, e) == ids + k) best = e;
  }
  return best;
}

bool Dial::Choose(const Said& said, const std::vector<uint8_t>& present, bool may_be_coarse, int k,
                  int32_t* ids, uint8_t* skipped, uint8_t* coarse) {
  weighed += k;
  std::fill(skipped, skipped + k, uint8_t{0});
  std::fill(coarse, coarse + k, uint8_t{0});
  const float below = may_be_coarse ? settings_.coarse_below : 0;
  float sum = 0;
  int strongest = 0;
  for (int i = 0; i < k; i++) {
    sum += said.weights[i];
    if (said.weights[i] > said.weights[strongest]) strongest = i;
  }
  // Weights of no sign, or of no number, are nobody's shares.
  if (!std::isfinite(sum) || sum <= 0) return false;
  order_.clear();
  for (int i = 0; i < k; i++) {
    if (i != strongest) order_.push_back(i);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int a, int b) { return said.weights[a] < said.weights[b]; });
  bool changed = false;
  bool resident_left = settings_.swap_near > 0;
  for (const int i : order_) {
    const float share = said.weights[i] / sum;
    if (share < settings_.skip_small) {
      skipped[i] = 1;
      skipped_small++;
    } else if (!IsPresent(present[ids[i]], share < below)) {
      const int32_t other = resident_left ? BestResident(said, present, share < below, k, ids) : -1;
      // A heavier one may find fewer: no coarse ones.
      resident_left = other >= 0;
      if (other >= 0 && Near(said, other, ids[i])) {
        ids[i] = other;
        swapped++;
      } else if (share < settings_.skip_cold) {
        skipped[i] = 1;
        skipped_cold++;
      } else {
        continue;
      }
    } else {
      continue;
    }
    changed = true;
  }
  for (int i = 0; i < k; i++) {
    if (skipped[i] != 0) {
      ids[i] = ids[strongest];
    } else if (said.weights[i] / sum < below && present[ids[i]] != kWhole) {
      coarse[i] = 1;
      this->coarse++;
    }
  }
  return changed;
}

}  // namespace remoe

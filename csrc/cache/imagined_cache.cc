#include "cache/imagined_cache.h"

namespace remoe {

void ImaginedCache::Copy(const ResidentRanks& real, int n_slots) {
  n_slots_ = n_slots;
  resident_ = 0;
  for (int layer = 0; layer < n_layers_; layer++) {
    for (int expert = 0; expert < n_experts_; expert++) {
      if (real.offered(layer, expert) && resident_ < n_slots) {
        ranks_.Offer(layer, expert);
        resident_++;
      } else {
        ranks_.Withdraw(layer, expert);
      }
    }
  }
}

int ImaginedCache::Run(int layer, const uint16_t* experts, int n) {
  int missed = 0;
  for (int i = 0; i < n; i++) {
    if (ranks_.offered(layer, experts[i])) {
      ranks_.Withdraw(layer, experts[i]);
    } else {
      missed++;
    }
  }
  resident_ += missed;
  for (; resident_ > n_slots_; resident_--) ranks_.Withdraw(ranks_.Least());
  for (int i = 0; i < n; i++) ranks_.Offer(layer, experts[i]);
  return missed;
}

}  // namespace remoe

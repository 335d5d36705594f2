#include "cache/least_stale.h"

namespace remoe {

LeastStalePolicy::LeastStalePolicy(const Geometry& geometry)
    : n_layers_(geometry.n_layers),
      n_experts_(geometry.n_experts),
      next_(geometry.total() + geometry.n_layers, kNoExpert),
      prev_(geometry.total() + geometry.n_layers, kNoExpert),
      used_(geometry.total(), 0) {
  for (int layer = 0; layer < n_layers_; layer++) {
    const ExpertId sentinel = static_cast<ExpertId>(geometry.total() + layer);
    next_[sentinel] = prev_[sentinel] = sentinel;
  }
}

void LeastStalePolicy::OnEvent(const Event& event) {
  now_++;
  if (event.step != step_ || event.layer < layer_) step_began_ = now_;
  step_ = event.step;
  layer_ = event.layer;
}

void LeastStalePolicy::Unlink(ExpertId id) {
  if (next_[id] == kNoExpert) return;
  next_[prev_[id]] = next_[id];
  prev_[next_[id]] = prev_[id];
  next_[id] = prev_[id] = kNoExpert;
}

void LeastStalePolicy::OnEventEnd(const Event& event) {
  const ExpertId sentinel = static_cast<ExpertId>(n_layers_ * n_experts_ + event.layer);
  for (int i = 0; i < event.n; i++) {
    const ExpertId id = static_cast<ExpertId>(event.layer) * n_experts_ + event.experts[i];
    const ExpertId last = prev_[sentinel];
    next_[last] = id;
    prev_[id] = last;
    next_[id] = sentinel;
    prev_[sentinel] = id;
    used_[id] = now_;
  }
}

ExpertId LeastStalePolicy::Victim(const EvictableList& evictable) {
  const ExpertId total = static_cast<ExpertId>(n_layers_ * n_experts_);
  ExpertId coming = kNoExpert, passed = kNoExpert, fresh = kNoExpert;
  for (int layer = 0; layer < n_layers_; layer++) {
    const ExpertId head = next_[total + layer];
    if (head >= total) continue;
    if (used_[head] >= step_began_) {
      fresh = head;  // the last one found is of the layer passed last
    } else {
      ExpertId& oldest = layer <= layer_ ? passed : coming;
      if (oldest == kNoExpert || used_[head] < used_[oldest]) oldest = head;
    }
  }
  if (passed != kNoExpert) return passed;
  return coming != kNoExpert ? coming : fresh;
}

}  // namespace remoe

#include "cache/online_links.h"

#include <algorithm>
#include <cmath>

#include "cache/reuse_rows.h"

namespace remoe {

namespace {

constexpr float kRate = 0.035f, kBiasRate = 0.002f;
constexpr float kDecay = 1e-3f;      // pulls a link towards 0
constexpr float kFirstBias = -2;     // about four events' share of a layer's experts
constexpr float kFirstSlope = 0.1f;  // mean square of an error before any was seen
constexpr float kSlopeFade = 0.98f;
constexpr double kRecordFade = 0.998;  // about the last five hundred tokens

}  // namespace

OnlineLinks::OnlineLinks(int n_layers, int n_experts, size_t stride)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      stride_(stride),
      kept_(uint64_t{sizeof(float)} * n_layers * n_experts * stride <= kMostBytes),
      bias_(kFirstBias) {
  if (!kept_) return;
  const size_t layers = static_cast<size_t>(n_layers), experts = static_cast<size_t>(n_experts);
  links_.assign(layers * experts * stride, 0);
  steps_.assign(layers * experts, 0);
  slopes_.assign(layers * stride, kFirstSlope);
  with_.assign(layers, 0);
  without_.assign(layers, 0);
  chosen_.assign(layers * kMostAwaited * experts, 0);
  n_chosen_.assign(layers * kMostAwaited, 0);
  score_.assign(layers * kMostAwaited * stride, 0);
  soon_.assign(layers * kMostAwaited * stride, 0);
  next_.assign(layers, 0);
  waiting_.assign(layers, 0);
  sum_.assign(stride, 0);
  error_.assign(stride, 0);
  loss_.assign(stride, 0);
}

void OnlineLinks::BreakAll() {
  std::fill(waiting_.begin(), waiting_.end(), 0);
}

int OnlineLinks::Awaited(int n) const {
  const int per_step = n_layers_ * n;
  return std::clamp((n_slots_ + per_step / 2) / per_step, 1, kMostAwaited);
}

void OnlineLinks::Follow(int layer, const uint16_t* experts, int n, const float* used,
                         const float* score) {
  if (!kept_) return;
  int& waiting = waiting_[layer];
  const int next = next_[layer], awaited = Awaited(n);
  waiting = std::min(waiting, awaited);
  for (int i = 1; i <= waiting; i++) {
    const int slot = (next + kMostAwaited - i) % kMostAwaited;
    rows::Most(used, &soon_[Slot(layer, slot) * stride_], stride_);
  }
  if (waiting == awaited) Learn(layer, (next + kMostAwaited - awaited) % kMostAwaited);
  waiting = std::min(waiting + 1, awaited);
  const size_t at = Slot(layer, next);
  std::copy(experts, experts + n, &chosen_[at * n_experts_]);
  n_chosen_[at] = n;
  std::copy(score, score + stride_, &score_[at * stride_]);
  std::fill_n(&soon_[at * stride_], stride_, 0.0f);
  next_[layer] = (next + 1) % kMostAwaited;
}

void OnlineLinks::AddTo(float* score, int layer, const uint16_t* experts, int n) const {
  if (!trusted(layer)) return;
  for (int i = 0; i < n; i++) rows::AddScaled(&links_[Link(layer, experts[i])], 1, score, stride_);
}

void OnlineLinks::Record(const float* soon, double* record) {
  rows::LogLosses(sum_.data(), soon, loss_.data(), stride_);
  float loss = 0;  // in the order of the experts, so that it is the same on every machine
  for (int j = 0; j < n_experts_; j++) loss += loss_[j];
  *record = *record * kRecordFade + loss;
}

void OnlineLinks::Learn(int layer, int slot) {
  const size_t at = Slot(layer, slot);
  const uint16_t* chosen = &chosen_[at * n_experts_];
  const float* score = &score_[at * stride_];
  const float* soon = &soon_[at * stride_];
  std::fill(sum_.begin(), sum_.end(), bias_);
  rows::AddScaled(score, 1, sum_.data(), stride_);
  rows::Errors(sum_.data(), soon, error_.data(), stride_);
  Record(soon, &without_[layer]);
  float off = 0;
  for (int j = 0; j < n_experts_; j++) off += error_[j];
  bias_ -= kBiasRate * off / static_cast<float>(n_experts_);

  for (int i = 0; i < n_chosen_[at]; i++) {
    rows::AddScaled(&links_[Link(layer, chosen[i])], 1, sum_.data(), stride_);
  }
  Record(soon, &with_[layer]);
  rows::Errors(sum_.data(), soon, error_.data(), stride_);
  float* slopes = &slopes_[static_cast<size_t>(layer) * stride_];
  rows::FadeSquares(slopes, kSlopeFade, error_.data(), stride_);
  for (int i = 0; i < n_chosen_[at]; i++) {
    float& steps = steps_[static_cast<size_t>(layer) * n_experts_ + chosen[i]];
    steps += 1;
    rows::Descend(error_.data(), slopes, steps, kRate, kDecay, &links_[Link(layer, chosen[i])],
                  stride_);
  }
}

}  // namespace remoe

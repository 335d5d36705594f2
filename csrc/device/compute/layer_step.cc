#include "device/compute/layer_step.h"

#include <algorithm>

namespace remoe {

bool LayerStep::Route(int layer, int n_experts, const ggml_tensor* product,
                      const ggml_tensor* ids) {
  layer_ = layer;
  product_ = product;
  input_ = product->src[1];
  k_ = static_cast<int>(ids->ne[0]);
  n_tokens_ = static_cast<int>(ids->ne[1]);
  n_placed_ = n_awaited_ = n_sent_ = n_there_ = 0;
  ids_.resize(static_cast<size_t>(k_) * n_tokens_);
  experts_.clear();
  new_all_but_down_.clear();
  state_.assign(n_experts, State::kUnused);
  slot_of_.assign(n_experts, kNoSlot);
  expendable_.assign(n_experts, false);
  for (int t = 0; t < n_tokens_; t++) {
    for (int i = 0; i < k_; i++) {
      // The ids are a strided view of a sort: honour both strides.
      const int32_t id = *reinterpret_cast<const int32_t*>(static_cast<const char*>(ids->data) +
                                                           t * ids->nb[1] + i * ids->nb[0]);
      if (id < 0 || id >= n_experts) return false;
      ids_[static_cast<size_t>(t) * k_ + i] = id;
      if (state_[id] == State::kUnused) {
        state_[id] = State::kRouted;
        experts_.push_back(static_cast<uint16_t>(id));
      }
    }
  }
  return true;
}

void LayerStep::Reroute(const std::vector<int32_t>& ids, const std::vector<uint8_t>* left_out) {
  ids_ = ids;
  // Pairs that are left out belong to an expert beyond the last, which is never placed.
  const auto nobody = static_cast<int32_t>(state_.size());
  std::fill(state_.begin(), state_.end(), State::kUnused);
  state_.push_back(State::kUnused);
  slot_of_.push_back(kNoSlot);
  experts_.clear();
  for (size_t i = 0; i < ids_.size(); i++) {
    if (left_out != nullptr && (*left_out)[i] != 0) {
      ids_[i] = nobody;
    } else if (state_[ids_[i]] == State::kUnused) {
      state_[ids_[i]] = State::kRouted;
      experts_.push_back(static_cast<uint16_t>(ids_[i]));
    }
  }
}

Event LayerStep::Describe() {
  routed_.assign(ids_.begin(), ids_.end());
  Event event;
  event.layer = layer_;
  event.n_tokens = n_tokens_;
  event.experts = experts_.data();
  event.n = static_cast<int>(experts_.size());
  event.ids = routed_.data();
  event.top_k = k_;
  return event;
}

// Of a prompt that takes most experts of every layer, the cache can keep a share of each layer's,
// and not whole layers: those that the prompt's end used, which decoding will want again, unless
// the policy knows better (Policy::LeastFirst).
void LayerStep::OrderByLastUse(const Geometry& geometry) {
  last_use_.assign(state_.size(), -1);
  for (size_t i = 0; i < ids_.size(); i++) last_use_[ids_[i]] = static_cast<int32_t>(i / k_);
  std::stable_sort(experts_.begin(), experts_.end(),
                   [this](uint16_t a, uint16_t b) { return last_use_[a] < last_use_[b]; });
  if (geometry.n_slots >= geometry.total()) return;
  // Room to work in: the layer that computes and a quarter of the next, whose rest comes while its
  // first experts compute; half of a smaller cache. More of it would be less for decoding.
  const int working = std::min(geometry.n_experts * 5 / 4, geometry.n_slots / 2);
  const size_t kept = static_cast<size_t>(
      std::max(k_, (geometry.n_slots - working) / std::max(1, geometry.n_layers)));
  for (size_t i = 0; i + kept < experts_.size(); i++) expendable_[experts_[i]] = true;
}

int LayerStep::ExpendableFirst(std::vector<uint16_t>* wave) const {
  const auto kept = std::stable_partition(wave->begin(), wave->end(),
                                          [this](uint16_t expert) { return expendable_[expert]; });
  return static_cast<int>(kept - wave->begin());
}

void LayerStep::Place(const std::vector<Placement>& placements) {
  n_there_ = 0;
  n_placed_ = static_cast<int>(placements.size());
  std::fill(slot_of_.begin(), slot_of_.end(), kNoSlot);
  for (const Placement& placement : placements) {
    slot_of_[placement.expert] = placement.slot;
    State& state = state_[placement.expert];
    if (state != State::kRouted) continue;
    state = State::kAwaited;
    n_awaited_++;
  }
  slots_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); i++) slots_[i] = slot_of_[ids_[i]];
}

void LayerStep::Send(uint16_t expert) {
  state_[expert] = State::kSent;
  n_sent_++;
}

void LayerStep::Unplaced(std::vector<uint16_t>* experts) const {
  for (const uint16_t expert : experts_) {
    if (state_[expert] == State::kRouted) experts->push_back(expert);
  }
}

Status LayerStep::Take(const std::vector<Arrival>& arrivals) {
  Status failure;
  for (const Arrival& arrival : arrivals) {
    if (arrival.expert >= state_.size()) continue;
    State& state = state_[arrival.expert];
    const bool awaited = state == State::kAwaited || state == State::kAllButDown;
    switch (arrival.kind) {
      case Arrival::Kind::kWeights:
        if (slot_of_[arrival.expert] != kNoSlot) n_there_++;
        if (!awaited) break;
        state = State::kThere;
        n_awaited_--;
        break;
      case Arrival::Kind::kAllButDown:
        if (state != State::kAwaited) break;
        state = State::kAllButDown;
        new_all_but_down_.push_back(arrival.expert);
        break;
      case Arrival::Kind::kRows:
        // Whoever takes the rows marks them; what nobody could take has failed.
        if (state != State::kSent) break;
        state = State::kRouted;
        n_sent_--;
        break;
      case Arrival::Kind::kFailed:
        if (state == State::kSent) {
          state = State::kRouted;
          n_sent_--;
        } else if (awaited && failure.ok()) {
          failure = arrival.status;
        }
        break;
    }
  }
  return failure;
}

bool LayerStep::Wants(const Arrival& arrival, int64_t n_out) const {
  if (arrival.kind != Arrival::Kind::kRows || arrival.expert >= state_.size()) return false;
  const State state = state_[arrival.expert];
  if (state == State::kUnused || state == State::kComputed) return false;
  const int64_t n_rows = std::count(ids_.begin(), ids_.end(), static_cast<int32_t>(arrival.expert));
  return static_cast<int64_t>(arrival.rows.size()) == n_rows * n_out;
}

void LayerStep::MarkComputed(uint16_t expert) {
  State& state = state_[expert];
  if (state == State::kAwaited || state == State::kAllButDown) n_awaited_--;
  if (state == State::kSent) n_sent_--;
  state = State::kComputed;
}

template <typename Which>
const std::vector<Pair>& LayerStep::Collect(const Which& which) {
  pairs_.clear();
  for (size_t i = 0; i < ids_.size(); i++) {
    if (!which(static_cast<uint16_t>(ids_[i]))) continue;
    pairs_.push_back(
        {static_cast<int32_t>(i / k_), static_cast<int32_t>(i % k_), ids_[i], slot_of_[ids_[i]]});
  }
  // An expert's pairs side by side: its weights are walked through once.
  std::stable_sort(pairs_.begin(), pairs_.end(),
                   [](const Pair& a, const Pair& b) { return a.slot < b.slot; });
  return pairs_;
}

const std::vector<Pair>& LayerStep::Ready() {
  Collect([this](uint16_t expert) { return state_[expert] == State::kThere; });
  for (const Pair& pair : pairs_) state_[pair.expert] = State::kComputed;
  return pairs_;
}

const std::vector<Pair>& LayerStep::AllButDown() {
  // Weights that came in the same breath need no beginning.
  Collect([this](uint16_t expert) {
    return state_[expert] == State::kAllButDown &&
           std::find(new_all_but_down_.begin(), new_all_but_down_.end(), expert) !=
               new_all_but_down_.end();
  });
  new_all_but_down_.clear();
  return pairs_;
}

const std::vector<Pair>& LayerStep::PairsOf(uint16_t expert) {
  return Collect([expert](uint16_t other) { return other == expert; });
}

}  // namespace remoe

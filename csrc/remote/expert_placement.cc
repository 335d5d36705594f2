#include "remote/expert_placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace remoe {

namespace {

constexpr float kKept = 0.9f;    // of the running mean, at each update
constexpr float kStays = 1.25f;  // what is somewhere already is worth so many times more there

}  // namespace

ExpertPlacement::ExpertPlacement(int n_layers, int n_experts)
    : n_experts_(n_experts),
      worth_(static_cast<size_t>(n_layers) * n_experts),
      hot_(worth_.size()),
      ranked_(worth_.size()) {
  std::iota(ranked_.begin(), ranked_.end(), 0u);
}

void ExpertPlacement::Update(const Local& local) {
  n_local_ = local.n_slots;
  std::vector<float> here(worth_.size());
  for (size_t id = 0; id < worth_.size(); id++) {
    const float now = 1 / (1 + std::exp(-local.scores[id]));
    worth_[id] = first_ ? now : kKept * worth_[id] + (1 - kKept) * now;
    here[id] = worth_[id] * (local.held[id] ? kStays : 1);
  }
  first_ = false;
  std::sort(ranked_.begin(), ranked_.end(),
            [&](uint32_t a, uint32_t b) { return here[a] != here[b] ? here[a] > here[b] : a < b; });
  for (size_t i = 0; i < ranked_.size(); i++) hot_[ranked_[i]] = i < n_local_;
}

std::vector<std::vector<WishedExpert>> ExpertPlacement::Wishes(
    const std::vector<Offer>& offers) const {
  std::vector<std::vector<WishedExpert>> wishes(offers.size());
  std::vector<size_t> room(offers.size());
  size_t left = 0;
  for (size_t p = 0; p < offers.size(); p++)
    left += room[p] = static_cast<size_t>(offers[p].capacity);
  // The warm ones: nobody else has them for certain.
  std::vector<uint32_t> warm;
  for (size_t i = n_local_; i < ranked_.size() && warm.size() < left; i++) {
    const std::pair<int, int> key(ranked_[i] / n_experts_, ranked_[i] % n_experts_);
    const bool fixed = std::any_of(offers.begin(), offers.end(), [&](const Offer& offer) {
      return offer.capacity == 0 && offer.held.count(key) > 0;
    });
    if (!fixed) warm.push_back(ranked_[i]);
  }
  const auto wish = [&](size_t p, uint32_t id) {
    wishes[p].push_back({id / static_cast<uint32_t>(n_experts_),
                         id % static_cast<uint32_t>(n_experts_), worth_[id]});
    room[p]--;
  };
  // First where they are, then where there is most room.
  std::vector<uint32_t> homeless;
  for (const uint32_t id : warm) {
    const std::pair<int, int> key(id / n_experts_, id % n_experts_);
    size_t p = 0;
    while (p < offers.size() && (room[p] == 0 || offers[p].held.count(key) == 0)) p++;
    if (p < offers.size()) {
      wish(p, id);
    } else {
      homeless.push_back(id);
    }
  }
  for (const uint32_t id : homeless) {
    const auto most = std::max_element(room.begin(), room.end());
    if (most == room.end() || *most == 0) break;
    wish(static_cast<size_t>(most - room.begin()), id);
  }
  return wishes;
}

}  // namespace remoe

#include "remote/proof.h"

namespace remoe {

int Proof::Find(int layer, const std::string& bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto last = recipe_of_layer_.find(layer);
    if (last != recipe_of_layer_.end() && recipes_[last->second].bytes == bytes) {
      return last->second;
    }
    const auto refused = refused_.find(layer);
    if (refused != refused_.end() && refused->second == bytes) return -1;
    for (size_t i = 0; i < recipes_.size(); i++) {
      if (recipes_[i].layer != layer || recipes_[i].bytes != bytes) continue;
      recipe_of_layer_[layer] = static_cast<int>(i);
      return static_cast<int>(i);
    }
  }
  // Without the lock: the computer may be waiting for a peer's weights, which are checked here.
  Result<RowComputer::Learned> learned = computer_->Learn(layer, bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!learned.ok()) {
    refused_[layer] = bytes;
    return -1;
  }
  recipes_.push_back({layer, bytes, learned.value()});
  recipe_of_layer_[layer] = static_cast<int>(recipes_.size()) - 1;
  return recipe_of_layer_[layer];
}

int Proof::n_recipes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(recipes_.size());
}

KnownRecipe Proof::recipe(int number) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return recipes_[number];
}

Result<ExpertSums> Proof::Sums(int layer, uint16_t expert) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = sums_.find({layer, expert});
    if (known != sums_.end()) return known->second;
  }
  Result<ExpertSums> sums = computer_->Sums(layer, expert);
  if (!sums.ok()) return sums;
  const std::lock_guard<std::mutex> lock(mutex_);
  sums_[{layer, expert}] = sums.value();
  return sums;
}

uint64_t Proof::KnownSum(int layer, uint16_t expert, int matrix) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto known = sums_.find({layer, expert});
  if (known == sums_.end() || matrix >= static_cast<int>(known->second.matrices.size())) return 0;
  return known->second.matrices[matrix];
}

std::vector<float> Proof::CanaryRows(int n_rows, int64_t n_in) {
  std::vector<float> rows(static_cast<size_t>(n_rows * n_in));
  uint64_t state = 0x9e3779b97f4a7c15u + static_cast<uint64_t>(n_rows);
  for (float& value : rows) {
    // Sums of four uniform numbers: near to normal, as activations are.
    float sum = 0;
    for (int i = 0; i < 4; i++) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
    }
    value = sum;
  }
  return rows;
}

}  // namespace remoe

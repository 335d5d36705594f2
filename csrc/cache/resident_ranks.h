// ResidentRanks: a score for every expert, and which of those that may leave a cache scores lowest.
//
// A layer's scores come together, a row at a time, as whole numbers in their order; the least of each
// row is looked for only when it is asked for. Nothing is allocated after construction. A policy owns
// one; not thread-safe.
#ifndef REMOE_CACHE_RESIDENT_RANKS_H_
#define REMOE_CACHE_RESIDENT_RANKS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/policy.h"

namespace remoe {

class ResidentRanks {
 public:
  // A row holds a layer's experts, up to a multiple of 16, so that it vectorises whole.
  static size_t Stride(int n_experts) { return (static_cast<size_t>(n_experts) + 15) / 16 * 16; }

  ResidentRanks(int n_layers, int n_experts);

  // New scores [stride] for all experts of a layer.
  void Score(int layer, const float* score);
  // Adds to one expert's score.
  void Raise(int layer, int expert, float by);
  // The expert may leave from now on, and may not: it is pinned or not resident.
  void Offer(int layer, int expert) {
    ranks_[At(layer, expert)] = scored_[At(layer, expert)];
    stale_[layer] = 1;
  }
  void Withdraw(int layer, int expert) {
    ranks_[At(layer, expert)] = kUnavailable;
    stale_[layer] = 1;
  }
  void Withdraw(ExpertId id) {
    Withdraw(static_cast<int>(id) / n_experts_, static_cast<int>(id) % n_experts_);
  }
  bool offered(int layer, int expert) const { return ranks_[At(layer, expert)] != kUnavailable; }
  // The lowest that may leave; of equals the first. REQUIRES: one may.
  ExpertId Least();
  // The layer's scores [n_experts] as whole numbers.
  const int32_t* scored(int layer) const { return &scored_[At(layer, 0)]; }

 private:
  static constexpr int32_t kUnavailable = INT32_MAX;
  size_t At(int layer, int expert) const { return static_cast<size_t>(layer) * stride_ + expert; }

  const int n_layers_, n_experts_;
  const size_t stride_;
  std::vector<int32_t> ranks_;   // [layer] rows: the score of who may leave, or kUnavailable
  std::vector<int32_t> scored_;  // [layer] rows: everybody's
  std::vector<int32_t> least_;   // [layer] least of ranks_, valid unless stale_
  std::vector<uint8_t> stale_;   // [layer]
};

}  // namespace remoe

#endif  // REMOE_CACHE_RESIDENT_RANKS_H_

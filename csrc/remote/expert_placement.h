// ExpertPlacement: which experts belong into this machine's cache, and which into peers' memory.
//
//     hot    the best by worth, as many as the local cache has slots: it reads them itself when they
//            are next used
//     warm   the next ones, as many as peers let engines choose: wished for, each from one peer
//     cold   the rest: storage
//
// Worth is a running mean of how likely the policy thinks an expert's next use, so that it changes
// slowly. Whatever is local, or is held already, is worth a little more: experts of nearly one worth
// must not move to and fro.
//
// A plain value, computing only. One thread at a time.
#ifndef REMOE_REMOTE_EXPERT_PLACEMENT_H_
#define REMOE_REMOTE_EXPERT_PLACEMENT_H_

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "wire/handshake.h"

namespace remoe {

class ExpertPlacement {
 public:
  // What a peer offers. `held`: layer and expert.
  struct Offer {
    int capacity = 0;  // experts that engines may choose; 0: what it holds never changes
    std::set<std::pair<int, int>> held;
  };
  // What this machine's cache is like now. `scores`: [n_layers][n_experts], logits for being used soon;
  // `held`: whether each is in the cache; `n_slots`: how many it has room for.
  struct Local {
    std::vector<float> scores;
    std::vector<bool> held;
    size_t n_slots = 0;
  };
  ExpertPlacement(int n_layers, int n_experts);

  void Update(const Local& local);
  // What to wish from each peer, best first.
  std::vector<std::vector<WishedExpert>> Wishes(const std::vector<Offer>& offers) const;
  bool hot(int layer, int expert) const {
    return hot_[static_cast<size_t>(layer) * n_experts_ + expert];
  }

 private:
  const int n_experts_;
  size_t n_local_ = 0;  // at the last update
  bool first_ = true;
  std::vector<float> worth_;  // from 0 to 1
  std::vector<bool> hot_;
  std::vector<uint32_t> ranked_;  // ids, best first
};

}  // namespace remoe

#endif  // REMOE_REMOTE_EXPERT_PLACEMENT_H_

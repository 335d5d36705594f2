// RecentUses: what a policy remembers of the latest steps, of each conversation apart.
//
// Conversations that take turns use other experts. What one has used lately says what it will use
// next, and little of the others; so each has a memory of its own, and the policy goes on with the
// memory of whose step it is. One that is new begins with that of the step before.
//
// A policy owns one; not thread-safe. At most kMost are kept beside the present one: who has paused
// longest is forgotten, and begins anew.
#ifndef REMOE_CACHE_RECENT_USE_H_
#define REMOE_CACHE_RECENT_USE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/policy.h"

namespace remoe {

// By layer; rows of floats as ReuseBiasedPolicy has them.
struct RecentUse {
  std::vector<float> averages;          // [layer][scales] of use
  std::vector<float> idle;              // [layer] steps since the last use
  std::vector<float> link_averages;     // [layer][2] of the first link's sums
  std::vector<float> learned_averages;  // [layer][2]
  std::vector<float> prob_averages;     // [layer][2]
  std::vector<uint16_t> chosen;         // [layer][n_experts] of its last event
  std::vector<int> n_chosen;            // [layer]
  std::vector<bool> together;           // [layer] the last event was of several conversations
  std::vector<int64_t> chosen_step;     // [layer]
};

class RecentUses {
 public:
  static constexpr size_t kMost = 32;

  RecentUse& now() { return now_; }
  const RecentUse& now() const { return now_; }
  // The step that comes is that conversation's.
  void SwitchTo(int conversation);

 private:
  struct Parked {
    int conversation;
    RecentUse use;
  };
  RecentUse now_;
  int conversation_ = kNoConversation;
  std::vector<Parked> parked_;  // longest first
};

}  // namespace remoe

#endif  // REMOE_CACHE_RECENT_USE_H_

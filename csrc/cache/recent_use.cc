#include "cache/recent_use.h"

#include <algorithm>
#include <utility>

namespace remoe {

void RecentUses::SwitchTo(int conversation) {
  if (conversation == conversation_) return;
  const auto found = std::find_if(parked_.begin(), parked_.end(), [=](const Parked& parked) {
    return parked.conversation == conversation;
  });
  RecentUse next;
  if (found != parked_.end()) {
    next = std::move(found->use);
    parked_.erase(found);
  } else {
    next = now_;
    if (parked_.size() >= kMost) parked_.erase(parked_.begin());
  }
  parked_.push_back({conversation_, std::move(now_)});
  now_ = std::move(next);
  conversation_ = conversation;
}

}  // namespace remoe

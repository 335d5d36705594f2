#include "cache/policy.h"

namespace remoe {

EvictableList::EvictableList(int total)
    : next_(total + 1, kNoExpert),
      prev_(total + 1, kNoExpert),
      in_(total + 1, false),
      sentinel_(static_cast<ExpertId>(total)) {
  next_[sentinel_] = prev_[sentinel_] = sentinel_;
}

void EvictableList::Link(ExpertId before, ExpertId id) {
  const ExpertId after = next_[before];
  next_[before] = id;
  prev_[id] = before;
  next_[id] = after;
  prev_[after] = id;
  in_[id] = true;
  size_++;
}

void EvictableList::PushBack(ExpertId id) {
  Link(prev_[sentinel_], id);
}

void EvictableList::PushFront(ExpertId id) {
  Link(sentinel_, id);
}

void EvictableList::Remove(ExpertId id) {
  next_[prev_[id]] = next_[id];
  prev_[next_[id]] = prev_[id];
  in_[id] = false;
  size_--;
}

}  // namespace remoe

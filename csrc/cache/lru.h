// LruPolicy: the expert unused for longest leaves first.
//
// The evictable list is kept in order of last unpin, which is the order of last use, so the victim
// is its head and nothing of its own is kept.
// Not thread-safe: as its cache, called from one thread.
#ifndef REMOE_CACHE_LRU_H_
#define REMOE_CACHE_LRU_H_

#include "cache/policy.h"

namespace remoe {

class LruPolicy : public Policy {
 public:
  const char* name() const override { return "lru"; }
  ExpertId Victim(const EvictableList& evictable) override { return evictable.front(); }
};

}  // namespace remoe

#endif  // REMOE_CACHE_LRU_H_

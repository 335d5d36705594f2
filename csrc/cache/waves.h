// Waves: how an event with more experts than there are slots is presented to a Cache, as several
// events one after the other. The engine and the replay cut alike, so that they count alike.
//
// The cache is read and not changed; it belongs to the caller. Not thread-safe: for the thread that
// calls the cache.
#ifndef REMOE_CACHE_WAVES_H_
#define REMOE_CACHE_WAVES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache/cache.h"

namespace remoe {

// Puts a layer's resident experts first, and those that are being prefetched: what later waves
// bring in must not push them out before they are used. Each part keeps its order.
inline void OrderForWaves(const Cache& cache, int layer, std::vector<uint16_t>* experts) {
  std::stable_partition(experts->begin(), experts->end(), [&](uint16_t expert) {
    return cache.SlotOf(layer, expert) != kNoSlot || cache.PrefetchSlotOf(layer, expert) != kNoSlot;
  });
}

}  // namespace remoe

#endif  // REMOE_CACHE_WAVES_H_

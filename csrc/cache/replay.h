// Replay: runs a recorded sequence of events through a Cache, the live engine's own code, and
// counts.
//
// EventLog is a set of columns owned by the caller, one row per event in the order the engine met
// them. ValidateLog() must have passed before anything else reads it: experts in range and distinct
// inside an event, layers in range, offsets rising. Counts are of the events from `first_counted`
// on; what comes before warms the cache. Thread-safe as long as each thread has its own Cache.
#ifndef REMOE_CACHE_REPLAY_H_
#define REMOE_CACHE_REPLAY_H_

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"

namespace remoe {

struct EventLog {
  size_t n_events = 0;
  const int64_t* step = nullptr;
  const uint16_t* layer = nullptr;
  const uint8_t* phase = nullptr;  // Phase
  const uint32_t* n_tokens = nullptr;
  const int64_t* offsets = nullptr;  // [n_events + 1] into experts
  const uint16_t* experts = nullptr;
  // Optional, both in `data`, at -1 where the event has none: ids [n_tokens][top_k] as u16, and
  // quantised probabilities (base/prob8.h) [n_prob_tokens][n_experts], found by their last row.
  const uint8_t* data = nullptr;
  size_t n_data = 0;
  int top_k = 0;
  const int64_t* ids_at = nullptr;          // [n_events]
  const int64_t* probs_at = nullptr;        // [n_events]
  const uint16_t* n_prob_tokens = nullptr;  // [n_events]
};

Status ValidateLog(const EventLog& log, const Geometry& geometry);

// For every entry of log.experts the index of the layer's next event with that expert, or kNever.
std::vector<int64_t> NextUses(const EventLog& log, const Geometry& geometry);

// Event `i` of the log, pointing into it; probabilities of its last tokens, where it has them, are
// put into `probs`, which has room for kRecentTokens rows of n_experts.
Event EventAt(const EventLog& log, size_t i, int n_experts, float* probs);

// An event with more experts than there are slots comes in waves, as in the engine. `next_uses` may
// be null unless the policy is the oracle.
Result<CacheCounts> Replay(Cache* cache, const EventLog& log, const int64_t* next_uses,
                           size_t first_counted);

}  // namespace remoe

#endif  // REMOE_CACHE_REPLAY_H_

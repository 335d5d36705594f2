// Replay: runs a recorded sequence of events through a Cache, the live engine's own code, and
// counts. Whoever wants to know what a cache would have missed asks here.
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
  const int32_t* conversation = nullptr;    // [n_events], optional
};

Status ValidateLog(const EventLog& log, const Geometry& geometry);

// For every entry of log.experts the index of the layer's next event with that expert, or kNever.
std::vector<int64_t> NextUses(const EventLog& log, const Geometry& geometry);

// Event `i` of the log, pointing into it; probabilities of its last tokens, where it has them, are
// put into `probs`, which has room for kRecentTokens rows of n_experts.
Event EventAt(const EventLog& log, size_t i, int n_experts, float* probs);

// Presents events to one cache as the engine does: one with more experts than there are slots comes
// in waves, residents first.
class Replayer {
 public:
  explicit Replayer(Cache* cache) : cache_(cache) {}  // not owned

  // `missed`: how many of the event's experts were not resident.
  Status Run(const Event& event, int* missed);

 private:
  Status Present(const Event& event, int* missed);
  void SortNextUses(const Event& event);

  Cache* cache_;
  std::vector<Placement> placements_;
  std::vector<uint16_t> experts_;  // of an event in waves, in their order
  std::vector<int64_t> next_uses_;
};

// `next_uses` may be null unless the policy is the oracle. `missed`, where it is not null, gets the
// misses of each event of the log, [n_events].
Result<CacheCounts> Replay(Cache* cache, const EventLog& log, const int64_t* next_uses,
                           size_t first_counted, int32_t* missed = nullptr);

}  // namespace remoe

#endif  // REMOE_CACHE_REPLAY_H_

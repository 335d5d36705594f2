#include "cache/replay.h"

#include "base/format.h"
#include "base/prob8.h"

namespace remoe {

Status ValidateLog(const EventLog& log, const Geometry& geometry) {
  std::vector<size_t> seen(geometry.n_experts, SIZE_MAX);
  if (log.n_events > 0 && log.offsets[0] != 0) {
    return Status(Code::kInvalidArgument, "the events' offsets do not begin at 0");
  }
  for (size_t i = 0; i < log.n_events; i++) {
    if (log.layer[i] >= geometry.n_layers) {
      return Status(Code::kInvalidArgument, Format("event %zu is of layer %d and there are %d", i,
                                                   log.layer[i], geometry.n_layers));
    }
    if (log.offsets[i + 1] < log.offsets[i]) {
      return Status(Code::kInvalidArgument, Format("event %zu ends before it begins", i));
    }
    for (int64_t k = log.offsets[i]; k < log.offsets[i + 1]; k++) {
      const uint16_t expert = log.experts[k];
      if (expert >= geometry.n_experts) {
        return Status(Code::kInvalidArgument, Format("event %zu names expert %d and a layer has %d",
                                                     i, expert, geometry.n_experts));
      }
      if (seen[expert] == i) {
        return Status(Code::kInvalidArgument, Format("event %zu names expert %d twice", i, expert));
      }
      seen[expert] = i;
    }
    if (log.phase[i] > static_cast<uint8_t>(Phase::kDecode)) {
      return Status(Code::kInvalidArgument, Format("event %zu has phase %d", i, log.phase[i]));
    }
    if (log.probs_at != nullptr && log.probs_at[i] >= 0 &&
        (log.n_prob_bytes < static_cast<size_t>(geometry.n_experts) ||
         static_cast<size_t>(log.probs_at[i]) > log.n_prob_bytes - geometry.n_experts)) {
      return Status(Code::kInvalidArgument,
                    Format("the probabilities of event %zu lie beyond their column", i));
    }
  }
  return Status::Ok();
}

std::vector<int64_t> NextUses(const EventLog& log, const Geometry& geometry) {
  std::vector<int64_t> next(geometry.total(), kNever);
  if (log.n_events == 0) return {};
  std::vector<int64_t> uses(log.offsets[log.n_events]);
  for (size_t i = log.n_events; i-- > 0;) {
    for (int64_t k = log.offsets[i]; k < log.offsets[i + 1]; k++) {
      int64_t& last = next[static_cast<size_t>(log.layer[i]) * geometry.n_experts + log.experts[k]];
      uses[k] = last;
      last = static_cast<int64_t>(i);
    }
  }
  return uses;
}

Event EventAt(const EventLog& log, size_t i, int n_experts, float* probs) {
  Event event;
  event.layer = log.layer[i];
  event.step = log.step[i];
  event.phase = static_cast<Phase>(log.phase[i]);
  event.n_tokens = static_cast<int>(log.n_tokens[i]);
  event.experts = log.experts + log.offsets[i];
  event.n = static_cast<int>(log.offsets[i + 1] - log.offsets[i]);
  if (log.probs_at != nullptr && log.probs_at[i] >= 0) {
    const uint8_t* row = log.probs + log.probs_at[i];
    for (int e = 0; e < n_experts; e++) probs[e] = FromProb8(row[e]);
    event.probs = probs;
  }
  return event;
}

Result<CacheCounts> Replay(Cache* cache, const EventLog& log, const int64_t* next_uses,
                           size_t first_counted) {
  const int n_experts = cache->geometry().n_experts;
  std::vector<Placement> placements;
  placements.reserve(n_experts);
  std::vector<float> probs(n_experts);
  CacheCounts before = cache->counts();
  for (size_t i = 0; i < log.n_events; i++) {
    if (i == first_counted) before = cache->counts();
    Event event = EventAt(log, i, n_experts, probs.data());
    if (next_uses != nullptr) event.next_use = next_uses + log.offsets[i];
    REMOE_RETURN_IF_ERROR(cache->Begin(event, &placements));
    cache->End();
  }
  CacheCounts counts = cache->counts();
  if (first_counted >= log.n_events) before = counts;
  counts.events -= before.events;
  counts.hits -= before.hits;
  counts.misses -= before.misses;
  counts.evictions -= before.evictions;
  return counts;
}

}  // namespace remoe

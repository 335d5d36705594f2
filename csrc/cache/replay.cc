#include "cache/replay.h"

#include <algorithm>

#include "base/format.h"
#include "base/prob8.h"
#include "cache/waves.h"

namespace remoe {

namespace {

constexpr uint32_t kMostTokens = 1 << 24;  // of a step; as a trace file may say

// Ids and probabilities of event `i` lie inside the data, and no id is beyond the experts.
Status ValidateData(const EventLog& log, size_t i, int n_experts) {
  const uint64_t n_data = log.n_data;
  if (log.ids_at != nullptr && log.ids_at[i] >= 0) {
    const uint64_t at = static_cast<uint64_t>(log.ids_at[i]);
    // A token of more experts than a layer has would not fit where the policy keeps its last choice.
    if (log.top_k < 1 || log.top_k > n_experts) {
      return Status(Code::kInvalidArgument,
                    Format("top-%d of a layer that has %d experts", log.top_k, n_experts));
    }
    const uint64_t n = uint64_t{log.n_tokens[i]} * static_cast<uint64_t>(log.top_k);
    if (at % 2 != 0 || at > n_data || n > (n_data - at) / 2) {
      return Status(Code::kInvalidArgument, Format("the ids of event %zu lie beyond the data", i));
    }
    if (reinterpret_cast<uintptr_t>(log.data + at) % alignof(uint16_t) != 0) {
      return Status(Code::kInvalidArgument,
                    Format("the ids of event %zu lie at an odd address", i));
    }
    const auto* ids = reinterpret_cast<const uint16_t*>(log.data + at);
    for (uint64_t k = 0; k < n; k++) {
      if (ids[k] < n_experts) continue;
      return Status(
          Code::kInvalidArgument,
          Format("a token of event %zu names expert %d and a layer has %d", i, ids[k], n_experts));
    }
  }
  if (log.probs_at != nullptr && log.probs_at[i] >= 0) {
    const uint64_t at = static_cast<uint64_t>(log.probs_at[i]), row = n_experts;
    const uint64_t rows = log.n_prob_tokens[i];
    if (rows < 1 || rows > log.n_tokens[i] || n_data < row || at > n_data - row ||
        at < (rows - 1) * row) {
      return Status(Code::kInvalidArgument,
                    Format("the probabilities of event %zu lie beyond the data", i));
    }
  }
  return Status::Ok();
}

}  // namespace

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
    if (log.n_tokens[i] < 1 || log.n_tokens[i] > kMostTokens) {
      return Status(Code::kInvalidArgument, Format("event %zu has %u tokens", i, log.n_tokens[i]));
    }
    REMOE_RETURN_IF_ERROR(ValidateData(log, i, geometry.n_experts));
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
  if (log.conversation != nullptr) event.conversation = log.conversation[i];
  event.experts = log.experts + log.offsets[i];
  event.n = static_cast<int>(log.offsets[i + 1] - log.offsets[i]);
  // A step's second event of a layer holds nothing new of it.
  event.continued = i > 0 && log.step[i - 1] == event.step && log.layer[i - 1] == event.layer;
  event.top_k = log.top_k;
  if (log.ids_at != nullptr && log.ids_at[i] >= 0) {
    event.ids = reinterpret_cast<const uint16_t*>(log.data + log.ids_at[i]);
  }
  if (log.probs_at != nullptr && log.probs_at[i] >= 0) {
    event.n_prob_tokens = std::min<int>(log.n_prob_tokens[i], kRecentTokens);
    const int n_probs = event.n_prob_tokens * n_experts;
    const uint8_t* codes = log.data + log.probs_at[i] + n_experts - n_probs;
    for (int j = 0; j < n_probs; j++) probs[j] = FromProb8(codes[j]);
    event.probs = probs;
  }
  return event;
}

Status Replayer::Run(const Event& event, int* missed) {
  *missed = 0;
  const int n_slots = cache_->geometry().n_slots;
  if (event.n <= n_slots) return Present(event, missed);
  experts_.assign(event.experts, event.experts + event.n);
  OrderForWaves(*cache_, event.layer, &experts_);
  if (event.next_use != nullptr) SortNextUses(event);
  Event wave = event;
  for (int begin = 0; begin < event.n; begin += n_slots) {
    wave.experts = experts_.data() + begin;
    wave.n = std::min(n_slots, event.n - begin);
    if (event.next_use != nullptr) wave.next_use = next_uses_.data() + begin;
    wave.continued = event.continued || begin > 0;
    REMOE_RETURN_IF_ERROR(Present(wave, missed));
  }
  return Status::Ok();
}

Status Replayer::Present(const Event& event, int* missed) {
  const uint64_t before = cache_->counts().misses;
  REMOE_RETURN_IF_ERROR(cache_->Begin(event, &placements_));
  cache_->End();
  *missed += static_cast<int>(cache_->counts().misses - before);
  return Status::Ok();
}

void Replayer::SortNextUses(const Event& event) {
  next_uses_.resize(event.n);
  for (int i = 0; i < event.n; i++) {
    const uint16_t* at = std::find(event.experts, event.experts + event.n, experts_[i]);
    next_uses_[i] = event.next_use[at - event.experts];
  }
}

Result<CacheCounts> Replay(Cache* cache, const EventLog& log, const int64_t* next_uses,
                           size_t first_counted, int32_t* missed) {
  const int n_experts = cache->geometry().n_experts;
  Replayer replayer(cache);
  std::vector<float> probs(static_cast<size_t>(kRecentTokens) * n_experts);
  CacheCounts before = cache->counts();
  for (size_t i = 0; i < log.n_events; i++) {
    if (i == first_counted) before = cache->counts();
    Event event = EventAt(log, i, n_experts, probs.data());
    if (next_uses != nullptr) event.next_use = next_uses + log.offsets[i];
    int of_event = 0;
    REMOE_RETURN_IF_ERROR(replayer.Run(event, &of_event));
    if (missed != nullptr) missed[i] = of_event;
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

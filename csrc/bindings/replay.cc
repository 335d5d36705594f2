#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "base/format.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "cache/given_scores.h"
#include "cache/replay.h"
#include "cache/reuse_biased.h"
#include "cache/reuse_columns.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

// The arrays that an EventLog points into, kept alive while it is used.
struct LogArrays {
  Array<int64_t> step;
  Array<uint16_t> layer;
  Array<uint8_t> phase;
  Array<uint32_t> n_tokens;
  Array<int64_t> offsets;
  Array<uint16_t> experts;
  std::optional<py::buffer_info> data;
  std::optional<Array<int64_t>> ids_at, probs_at;
  std::optional<Array<uint16_t>> n_prob_tokens;
  std::optional<Array<int32_t>> conversation;
  int top_k = 0;

  explicit LogArrays(const py::dict& columns)
      : step(columns["step"]),
        layer(columns["layer"]),
        phase(columns["phase"]),
        n_tokens(columns["n_tokens"]),
        offsets(columns["offsets"]),
        experts(columns["experts"]) {
    if (columns.contains("data") && !columns["data"].is_none()) {
      data = columns["data"].cast<py::buffer>().request();
      ids_at = Array<int64_t>(columns["ids_at"]);
      probs_at = Array<int64_t>(columns["probs_at"]);
      n_prob_tokens = Array<uint16_t>(columns["n_prob_tokens"]);
      top_k = columns["top_k"].cast<int>();
    }
    if (columns.contains("conversation")) conversation = Array<int32_t>(columns["conversation"]);
  }

  EventLog Log() const {
    EventLog log;
    log.n_events = static_cast<size_t>(layer.size());
    const auto n = layer.size();
    const bool fit = step.size() == n && phase.size() == n && n_tokens.size() == n &&
                     offsets.size() == n + 1 && offsets.data()[n] == experts.size() &&
                     (!conversation || conversation->size() == n) &&
                     (!data || (data->itemsize == 1 && ids_at->size() == n &&
                                probs_at->size() == n && n_prob_tokens->size() == n));
    if (!fit) {
      ThrowIfError(Status(Code::kInvalidArgument, "the columns of the events differ in length"));
    }
    log.step = step.data();
    log.layer = layer.data();
    log.phase = phase.data();
    log.n_tokens = n_tokens.data();
    if (conversation) log.conversation = conversation->data();
    log.offsets = offsets.data();
    log.experts = experts.data();
    if (data) {
      log.data = static_cast<const uint8_t*>(data->ptr);
      log.n_data = static_cast<size_t>(data->size);
      log.top_k = top_k;
      log.ids_at = ids_at->data();
      log.probs_at = probs_at->data();
      log.n_prob_tokens = n_prob_tokens->data();
    }
    return log;
  }
};

// Replays from an empty cache; `missed`, where it is not null, gets the misses of each event.
CacheCounts RunReplay(const py::dict& columns, const Geometry& geometry, const std::string& policy,
                      size_t first_counted, const std::optional<py::bytes>& profile,
                      std::vector<int32_t>* missed) {
  const LogArrays arrays(columns);
  const EventLog log = arrays.Log();
  const std::shared_ptr<const Profile> fitted = ToProfile(profile);
  Result<CacheCounts> counts = CacheCounts();
  {
    const py::gil_scoped_release release;
    counts = [&]() -> Result<CacheCounts> {
      REMOE_RETURN_IF_ERROR(ValidateLog(log, geometry));
      auto made = MakePolicy(policy, geometry, fitted);
      if (!made.ok()) return made.status();
      std::vector<int64_t> next_uses;
      if (policy == "belady") next_uses = NextUses(log, geometry);
      if (missed != nullptr) missed->resize(log.n_events);
      Cache cache(geometry, std::move(made.value()));
      return Replay(&cache, log, next_uses.empty() ? nullptr : next_uses.data(), first_counted,
                    missed != nullptr ? missed->data() : nullptr);
    }();
  }
  return Unwrap(std::move(counts));
}

py::dict Simulate(const py::dict& columns, int n_layers, int n_experts, int n_slots,
                  const std::string& policy, size_t first_counted,
                  const std::optional<py::bytes>& profile) {
  return CountsDict(RunReplay(columns, MakeGeometry(n_layers, n_experts, n_slots), policy,
                              first_counted, profile, nullptr));
}

// The misses of each event: [n_events].
py::array_t<int32_t> ReplayMisses(const py::dict& columns, int n_layers, int n_experts, int n_slots,
                                  const std::string& policy,
                                  const std::optional<py::bytes>& profile) {
  std::vector<int32_t> missed;
  RunReplay(columns, MakeGeometry(n_layers, n_experts, n_slots), policy, 0, profile, &missed);
  return Moved(std::move(missed));
}

// The columns that reuse-biased scores by, after each of `events` (indices, rising):
// [n_events, n_experts, n_features].
py::array_t<float> PolicyColumns(const py::dict& columns, int n_layers, int n_experts,
                                 const std::optional<py::bytes>& profile,
                                 const Array<int64_t>& events) {
  const Geometry geometry = MakeGeometry(n_layers, n_experts, n_layers * n_experts);
  const LogArrays arrays(columns);
  const EventLog log = arrays.Log();
  const std::shared_ptr<const Profile> fitted = ToProfile(profile);
  const auto policy = Unwrap(ReuseBiasedPolicy::Make(geometry, fitted));
  ThrowIfError(ValidateLog(log, geometry));
  const size_t n_features = kReuseColumnCount;
  for (py::ssize_t i = 0; i < events.size(); i++) {
    const int64_t after = i == 0 ? -1 : events.data()[i - 1], event = events.data()[i];
    if (event > after && event < static_cast<int64_t>(log.n_events)) continue;
    ThrowIfError(Status(Code::kInvalidArgument, "events: rising numbers of events"));
  }
  py::array_t<float> sampled(
      std::vector<py::ssize_t>{events.size(), n_experts, static_cast<py::ssize_t>(n_features)});
  float* out = sampled.mutable_data();
  const int64_t* next = events.data();
  const int64_t* const end = next + events.size();
  const py::gil_scoped_release release;
  std::vector<float> probs(static_cast<size_t>(kRecentTokens) * n_experts);
  for (size_t i = 0; i < log.n_events && next < end; i++) {
    policy->OnEvent(EventAt(log, i, n_experts, probs.data()));
    if (*next != static_cast<int64_t>(i)) continue;
    for (size_t f = 0; f < n_features; f++) {
      const float* column = policy->FeatureColumn(static_cast<int>(f));
      for (int e = 0; e < n_experts; e++) out[e * n_features + f] = column[e];
    }
    out += n_experts * n_features;
    next++;
  }
  return sampled;
}

// The scores that reuse-biased gives after every event: [n_events, n_experts], logits without bias.
// With n_slots, as in a cache of so many and with what it learns on line; with 0, without.
py::array_t<float> PolicyScores(const py::dict& columns, int n_layers, int n_experts,
                                const std::optional<py::bytes>& profile, int n_slots) {
  const Geometry geometry =
      MakeGeometry(n_layers, n_experts, n_slots > 0 ? n_slots : n_layers * n_experts);
  const LogArrays arrays(columns);
  const EventLog log = arrays.Log();
  const std::shared_ptr<const Profile> fitted = ToProfile(profile);
  const auto policy = Unwrap(ReuseBiasedPolicy::Make(geometry, fitted));
  ThrowIfError(ValidateLog(log, geometry));
  py::array_t<float> scores(
      std::vector<py::ssize_t>{static_cast<py::ssize_t>(log.n_events), n_experts});
  float* out = scores.mutable_data();
  const py::gil_scoped_release release;
  std::vector<float> probs(static_cast<size_t>(kRecentTokens) * n_experts);
  for (size_t i = 0; i < log.n_events; i++) {
    policy->OnEvent(EventAt(log, i, n_experts, probs.data()));
    const float* row = n_slots > 0 ? policy->Corrected() : policy->Scores();
    std::copy(row, row + n_experts, out + i * n_experts);
  }
  return scores;
}

// The misses of each event, [n_events], where victims are those that `scores`, a row for each event,
// rank lowest.
py::array_t<int32_t> ReplayScored(const py::dict& columns, int n_layers, int n_experts, int n_slots,
                                  const Array<float>& scores) {
  const Geometry geometry = MakeGeometry(n_layers, n_experts, n_slots);
  const LogArrays arrays(columns);
  const EventLog log = arrays.Log();
  ThrowIfError(ValidateLog(log, geometry));
  if (scores.ndim() != 2 || scores.shape(0) != static_cast<py::ssize_t>(log.n_events) ||
      scores.shape(1) != n_experts) {
    ThrowIfError(Status(Code::kInvalidArgument, "scores: a row of all experts for each event"));
  }
  for (size_t i = 1; i < log.n_events; i++) {
    if (log.step[i] != log.step[i - 1] || log.layer[i] != log.layer[i - 1]) continue;
    ThrowIfError(Status(Code::kInvalidArgument,
                        Format("event %zu goes on with the one before: it has no scores", i)));
  }
  std::vector<int32_t> missed(log.n_events);
  {
    const py::gil_scoped_release release;
    Cache cache(geometry, std::make_unique<GivenScoresPolicy>(geometry, scores.data()));
    Unwrap(Replay(&cache, log, nullptr, 0, missed.data()));
  }
  return Moved(std::move(missed));
}

}  // namespace

void RegisterReplay(py::module_& module) {
  module.def("simulate", &Simulate, py::arg("columns"), py::arg("n_layers"), py::arg("n_experts"),
             py::arg("n_slots"), py::arg("policy"), py::arg("first_counted") = 0,
             py::arg("profile") = py::none());
  module.def("replay_misses", &ReplayMisses, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("n_slots"), py::arg("policy"),
             py::arg("profile") = py::none());
  module.def("policy_columns", &PolicyColumns, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("profile"), py::arg("events"));
  module.def("policy_scores", &PolicyScores, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("profile"), py::arg("n_slots") = 0);
  module.def("replay_scored", &ReplayScored, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("n_slots"), py::arg("scores"));
}

}  // namespace remoe::bindings

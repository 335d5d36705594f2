#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "base/prob8.h"
#include "bindings/bindings.h"
#include "cache/cache.h"
#include "cache/profile.h"
#include "cache/replay.h"
#include "cache/reuse_biased.h"
#include "trace/trace_file.h"
#include "trace/trace_writer.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> Moved(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  const py::capsule free(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(owner->size(), owner->data(), free);
}

template <typename T>
T Unwrap(Result<T> result) {
  ThrowIfError(result.status());
  return std::move(result.value());
}

Geometry MakeGeometry(int n_layers, int n_experts, int n_slots) {
  if (n_layers < 1 || n_experts < 1 || n_experts > 16384 || n_layers > 4096 || n_slots < 1) {
    ThrowIfError(Status(
        Code::kInvalidArgument,
        Format("no such cache: %d layers of %d experts, %d slots", n_layers, n_experts, n_slots)));
  }
  Geometry geometry;
  geometry.n_layers = n_layers;
  geometry.n_experts = n_experts;
  geometry.n_slots = n_slots;
  return geometry;
}

py::dict CountsDict(const CacheCounts& counts) {
  py::dict dict;
  dict["events"] = counts.events;
  dict["hits"] = counts.hits;
  dict["misses"] = counts.misses;
  dict["evictions"] = counts.evictions;
  return dict;
}

// A cache driven event by event from Python: what tests and tools use to see single decisions.
class PyCache {
 public:
  PyCache(int n_layers, int n_experts, int n_slots, const std::string& policy,
          const std::optional<py::bytes>& profile)
      : geometry_(MakeGeometry(n_layers, n_experts, n_slots)),
        cache_(geometry_, Unwrap(MakePolicy(policy, geometry_, ToProfile(profile)))) {}

  py::list Begin(int layer, const std::vector<uint16_t>& experts, int64_t step, bool decode,
                 int n_tokens, std::optional<Array<uint16_t>> ids,
                 std::optional<Array<float>> probs, bool continued) {
    if (open_) Throw("the last event is still open: call end() first");
    if (layer < 0 || layer >= geometry_.n_layers) Throw("no such layer");
    for (const uint16_t e : experts) {
      if (e >= geometry_.n_experts) Throw("no such expert");
    }
    if (ids && (ids->ndim() != 2 || ids->shape(0) != n_tokens)) Throw("ids: a row per token");
    if (ids) {
      for (py::ssize_t i = 0; i < ids->size(); i++) {
        if (ids->data()[i] >= geometry_.n_experts) Throw("no such expert");
      }
    }
    const py::ssize_t rows = probs ? probs->size() / geometry_.n_experts : 0;
    if (probs && (probs->size() != rows * geometry_.n_experts || rows < 1 || rows > n_tokens)) {
      Throw("probs: a row of one value per expert for each of the last tokens");
    }
    Event event;
    event.layer = layer;
    event.step = step;
    event.phase = decode ? Phase::kDecode : Phase::kPrefill;
    event.n_tokens = n_tokens;
    event.experts = experts.data();
    event.n = static_cast<int>(experts.size());
    if (ids) {
      event.ids = ids->data();
      event.top_k = static_cast<int>(ids->shape(1));
    }
    event.probs = probs ? probs->data() : nullptr;
    event.n_prob_tokens = static_cast<int>(rows);
    event.continued = continued;
    ThrowIfError(cache_.Begin(event, &placements_));
    open_ = true;
    py::list placed;
    for (const Placement& p : placements_) placed.append(py::make_tuple(p.expert, p.slot, p.hit));
    return placed;
  }
  void Failed(uint16_t expert) {
    bool missed = false;
    for (const Placement& p : placements_) missed |= p.expert == expert && !p.hit;
    if (!open_ || !missed) Throw("the open event has no such miss");
    cache_.Failed(expert);
  }
  void End() {
    if (!open_) Throw("no event is open");
    cache_.End();
    open_ = false;
  }
  void Clear() {
    if (open_) Throw("an event is open");
    cache_.Clear();
  }
  bool Expect(const Bonus& bonus) {
    return cache_.policy().Expect(CheckedBonus(bonus, geometry_.total()));
  }
  py::dict Counts() const { return CountsDict(cache_.counts()); }
  int Resident() const { return cache_.resident(); }
  std::vector<std::pair<int, int>> Residents() const {
    std::vector<std::pair<int, int>> all;
    for (int l = 0; l < geometry_.n_layers; l++) {
      for (int e = 0; e < geometry_.n_experts; e++) {
        if (cache_.SlotOf(l, e) != kNoSlot) all.emplace_back(l, e);
      }
    }
    return all;
  }

 private:
  [[noreturn]] static void Throw(const char* what) {
    ThrowIfError(Status(Code::kInvalidArgument, what));
    std::abort();
  }
  Geometry geometry_;
  Cache cache_;
  std::vector<Placement> placements_;
  bool open_ = false;
};

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
  }

  EventLog Log() const {
    EventLog log;
    log.n_events = static_cast<size_t>(layer.size());
    const auto n = layer.size();
    const bool fit = step.size() == n && phase.size() == n && n_tokens.size() == n &&
                     offsets.size() == n + 1 && offsets.data()[n] == experts.size() &&
                     (!data || (data->itemsize == 1 && ids_at->size() == n &&
                                probs_at->size() == n && n_prob_tokens->size() == n));
    if (!fit) {
      ThrowIfError(Status(Code::kInvalidArgument, "the columns of the events differ in length"));
    }
    log.step = step.data();
    log.layer = layer.data();
    log.phase = phase.data();
    log.n_tokens = n_tokens.data();
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

py::dict Simulate(const py::dict& columns, int n_layers, int n_experts, int n_slots,
                  const std::string& policy, size_t first_counted,
                  const std::optional<py::bytes>& profile) {
  const Geometry geometry = MakeGeometry(n_layers, n_experts, n_slots);
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
      Cache cache(geometry, std::move(made.value()));
      return Replay(&cache, log, next_uses.empty() ? nullptr : next_uses.data(), first_counted);
    }();
  }
  return CountsDict(Unwrap(std::move(counts)));
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
  if (fitted != nullptr) ThrowIfError(ReuseBiasedPolicy::Fits(*fitted, geometry));
  ThrowIfError(ValidateLog(log, geometry));
  const size_t n_features = ReuseBiasedPolicy::FeatureNames().size();
  py::array_t<float> sampled(
      std::vector<py::ssize_t>{events.size(), n_experts, static_cast<py::ssize_t>(n_features)});
  float* out = sampled.mutable_data();
  const int64_t* next = events.data();
  const int64_t* const end = next + events.size();
  const py::gil_scoped_release release;
  ReuseBiasedPolicy policy(geometry, fitted);
  std::vector<float> probs(static_cast<size_t>(kRecentTokens) * n_experts);
  for (size_t i = 0; i < log.n_events && next < end; i++) {
    policy.OnEvent(EventAt(log, i, n_experts, probs.data()));
    if (*next != static_cast<int64_t>(i)) continue;
    for (size_t f = 0; f < n_features; f++) {
      const float* column = policy.FeatureColumn(static_cast<int>(f));
      for (int e = 0; e < n_experts; e++) out[e * n_features + f] = column[e];
    }
    out += n_experts * n_features;
    next++;
  }
  return sampled;
}

// The scores that reuse-biased gives after every event: [n_events, n_experts], logits without bias.
py::array_t<float> PolicyScores(const py::dict& columns, int n_layers, int n_experts,
                                const std::optional<py::bytes>& profile) {
  const Geometry geometry = MakeGeometry(n_layers, n_experts, n_layers * n_experts);
  const LogArrays arrays(columns);
  const EventLog log = arrays.Log();
  const std::shared_ptr<const Profile> fitted = ToProfile(profile);
  if (fitted != nullptr) ThrowIfError(ReuseBiasedPolicy::Fits(*fitted, geometry));
  ThrowIfError(ValidateLog(log, geometry));
  py::array_t<float> scores(
      std::vector<py::ssize_t>{static_cast<py::ssize_t>(log.n_events), n_experts});
  float* out = scores.mutable_data();
  const py::gil_scoped_release release;
  ReuseBiasedPolicy policy(geometry, fitted);
  std::vector<float> probs(static_cast<size_t>(kRecentTokens) * n_experts);
  for (size_t i = 0; i < log.n_events; i++) {
    policy.OnEvent(EventAt(log, i, n_experts, probs.data()));
    std::copy(policy.Scores(), policy.Scores() + n_experts, out + i * n_experts);
  }
  return scores;
}

py::bytes MakeProfile(int n_layers, int n_experts, const std::string& fingerprint,
                      const std::string& meta, const Array<float>& shares,
                      const Array<float>& weights, const Array<float>& scales,
                      const Array<int8_t>& links, const std::optional<Array<float>>& uses) {
  Profile profile;
  profile.fingerprint = fingerprint;
  profile.meta = meta;
  const bool weighted = shares.size() > 0;
  profile.n_weights = weighted ? static_cast<int>(ReuseBiasedPolicy::FeatureNames().size()) : 0;
  const bool linked = links.size() > 0;
  profile.n_contexts = linked ? ReuseBiasedPolicy::kContexts : 0;
  const bool of_one_model = linked || uses;
  profile.n_layers = of_one_model ? n_layers : 0;
  profile.n_experts = of_one_model ? n_experts : 0;
  const py::ssize_t tables = static_cast<py::ssize_t>(profile.n_layers) * profile.n_contexts;
  if (uses && uses->size() != static_cast<py::ssize_t>(n_layers) * n_experts) {
    ThrowIfError(Status(Code::kInvalidArgument, "uses: one number for each expert"));
  }
  if (uses) profile.uses.assign(uses->data(), uses->data() + uses->size());
  if (weights.size() != shares.size() * profile.n_weights || scales.size() != tables ||
      links.size() != tables * n_experts * n_experts) {
    ThrowIfError(Status(Code::kInvalidArgument, "the parts of the profile differ in size"));
  }
  profile.shares.assign(shares.data(), shares.data() + shares.size());
  profile.weights.assign(weights.data(), weights.data() + weights.size());
  profile.scales.assign(scales.data(), scales.data() + scales.size());
  profile.links.assign(links.data(), links.data() + links.size());
  const std::vector<uint8_t> bytes = profile.Serialize();
  ThrowIfError(Profile::Parse(bytes.data(), bytes.size(), "the new profile").status());
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

py::dict ParseProfileBytes(const py::bytes& bytes, const Path& name) {
  const std::string_view view = bytes;
  Profile profile = Unwrap(
      Profile::Parse(reinterpret_cast<const uint8_t*>(view.data()), view.size(), name.bytes));
  py::dict dict;
  dict["n_layers"] = profile.n_layers;
  dict["n_experts"] = profile.n_experts;
  dict["n_contexts"] = profile.n_contexts;
  dict["fingerprint"] = profile.fingerprint;
  dict["meta"] = profile.meta;
  dict["shares"] = Moved(std::move(profile.shares));
  dict["weights"] = Moved(std::move(profile.weights));
  dict["scales"] = Moved(std::move(profile.scales));
  dict["uses"] = Moved(std::move(profile.uses));
  dict["links"] = Moved(std::move(profile.links));
  return dict;
}

py::dict ParseTraceBytes(const py::buffer& buffer, const Path& path) {
  const py::buffer_info info = buffer.request();
  Result<TraceIndex> result = TraceIndex();
  {
    const py::gil_scoped_release release;
    result = ParseTrace(static_cast<const uint8_t*>(info.ptr),
                        static_cast<size_t>(info.size * info.itemsize), path.bytes);
  }
  TraceIndex index = Unwrap(std::move(result));
  py::dict dict;
  dict["n_layers"] = index.header.n_layers;
  dict["n_experts"] = index.header.n_experts;
  dict["top_k"] = index.header.top_k;
  dict["fingerprint"] = py::bytes(index.header.fingerprint);
  dict["meta"] = py::bytes(index.header.meta);
  dict["step"] = Moved(std::move(index.step));
  dict["layer"] = Moved(std::move(index.layer));
  dict["phase"] = Moved(std::move(index.phase));
  dict["n_tokens"] = Moved(std::move(index.n_tokens));
  dict["offsets"] = Moved(std::move(index.offsets));
  dict["experts"] = Moved(std::move(index.experts));
  dict["ids_at"] = Moved(std::move(index.ids_at));
  dict["probs_at"] = Moved(std::move(index.probs_at));
  dict["n_prob_tokens"] = Moved(std::move(index.n_prob_tokens));
  return dict;
}

class PyTraceWriter {
 public:
  PyTraceWriter(const Path& path, uint32_t n_layers, uint32_t n_experts, uint32_t top_k,
                const std::string& fingerprint, const std::string& meta)
      : writer_(Unwrap(
            TraceWriter::Create(path.bytes, {n_layers, n_experts, top_k, fingerprint, meta}))) {}

  void Append(int layer, int64_t step, bool decode, const Array<uint16_t>& experts, int n_tokens,
              std::optional<Array<uint16_t>> ids, std::optional<Array<float>> probs) {
    const TraceHeader& header = writer_->header();
    TraceEvent event;
    event.layer = layer;
    event.step = step;
    event.decode = decode;
    event.n_tokens = n_tokens;
    event.experts = experts.data();
    event.n = static_cast<int>(experts.size());
    if (ids) {
      if (ids->size() != static_cast<py::ssize_t>(header.top_k) * n_tokens) {
        ThrowIfError(Status(Code::kInvalidArgument, "ids must be [n_tokens, top_k]"));
      }
      event.ids = ids->data();
    }
    if (probs) {
      if (probs->size() % header.n_experts != 0) {
        ThrowIfError(Status(Code::kInvalidArgument, "probs must be [n_prob_tokens, n_experts]"));
      }
      event.probs = probs->data();
      event.n_prob_tokens = static_cast<int>(probs->size() / header.n_experts);
    }
    ThrowIfError(writer_->Append(event));
  }
  void Finish() {
    const py::gil_scoped_release release;
    const Status status = writer_->Finish();
    const py::gil_scoped_acquire acquire;
    ThrowIfError(status);
  }
  uint64_t n_events() const { return writer_->n_events(); }

 private:
  std::unique_ptr<TraceWriter> writer_;
};

}  // namespace

const float* CheckedBonus(const Bonus& bonus, int total) {
  if (!bonus) return nullptr;
  const bool finite = std::all_of(bonus->data(), bonus->data() + bonus->size(),
                                  [](float value) { return std::isfinite(value); });
  if (bonus->size() != total || !finite) {
    ThrowIfError(Status(Code::kInvalidArgument, "bonus: a finite value for every expert"));
  }
  return bonus->data();
}

std::shared_ptr<const Profile> ToProfile(const std::optional<py::bytes>& bytes) {
  if (!bytes) return nullptr;
  const std::string_view view = *bytes;
  return std::make_shared<const Profile>(Unwrap(
      Profile::Parse(reinterpret_cast<const uint8_t*>(view.data()), view.size(), "the profile")));
}

void RegisterCache(py::module_& module) {
  module.def("policy_names", &PolicyNames);
  module.def("live_policy_names", &LivePolicyNames);
  module.def("simulate", &Simulate, py::arg("columns"), py::arg("n_layers"), py::arg("n_experts"),
             py::arg("n_slots"), py::arg("policy"), py::arg("first_counted") = 0,
             py::arg("profile") = py::none());
  module.def("feature_names", &ReuseBiasedPolicy::FeatureNames);
  module.def("policy_columns", &PolicyColumns, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("profile"), py::arg("events"));
  module.def("policy_scores", &PolicyScores, py::arg("columns"), py::arg("n_layers"),
             py::arg("n_experts"), py::arg("profile"));
  module.def("make_profile", &MakeProfile, py::arg("n_layers"), py::arg("n_experts"),
             py::arg("fingerprint"), py::arg("meta"), py::arg("shares"), py::arg("weights"),
             py::arg("scales"), py::arg("links"), py::arg("uses") = py::none());
  module.def("parse_profile", &ParseProfileBytes, py::arg("data"), py::arg("name"));
  module.def("parse_trace", &ParseTraceBytes, py::arg("data"), py::arg("path"));
  module.def("to_prob8", py::vectorize([](float p) { return ToProb8(p); }), py::arg("p"));
  module.def("from_prob8", py::vectorize([](uint8_t code) { return FromProb8(code); }),
             py::arg("code"));

  py::class_<PyCache>(module, "Cache")
      .def(py::init<int, int, int, const std::string&, const std::optional<py::bytes>&>(),
           py::arg("n_layers"), py::arg("n_experts"), py::arg("n_slots"), py::arg("policy"),
           py::arg("profile") = py::none())
      .def("begin", &PyCache::Begin, py::arg("layer"), py::arg("experts"), py::arg("step") = 0,
           py::arg("decode") = true, py::arg("n_tokens") = 1, py::arg("ids") = py::none(),
           py::arg("probs") = py::none(), py::arg("continued") = false)
      .def("failed", &PyCache::Failed, py::arg("expert"))
      .def("end", &PyCache::End)
      .def("clear", &PyCache::Clear)
      .def("expect", &PyCache::Expect, py::arg("bonus").none(true))
      .def("counts", &PyCache::Counts)
      .def("residents", &PyCache::Residents)
      .def_property_readonly("resident", &PyCache::Resident);

  py::class_<PyTraceWriter>(module, "TraceWriter")
      .def(py::init<const Path&, uint32_t, uint32_t, uint32_t, const std::string&,
                    const std::string&>(),
           py::arg("path"), py::arg("n_layers"), py::arg("n_experts"), py::arg("top_k"),
           py::arg("fingerprint") = "", py::arg("meta") = "{}")
      .def("append", &PyTraceWriter::Append, py::arg("layer"), py::arg("step"), py::arg("decode"),
           py::arg("experts"), py::arg("n_tokens") = 1, py::arg("ids") = py::none(),
           py::arg("probs") = py::none())
      .def("finish", &PyTraceWriter::Finish)
      .def_property_readonly("n_events", &PyTraceWriter::n_events);
}

}  // namespace remoe::bindings

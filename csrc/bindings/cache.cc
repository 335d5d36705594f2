#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "cache/cache.h"
#include "cache/replay.h"
#include "cache/reuse_columns.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

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
    const Event event = Checked(layer, experts, step, decode, n_tokens, ids, probs, continued);
    ThrowIfError(cache_.Begin(event, &placements_));
    open_ = true;
    py::list placed;
    for (const Placement& p : placements_) placed.append(py::make_tuple(p.expert, p.slot, p.hit));
    return placed;
  }
  // Begins and ends an event, in waves where it has more experts than there are slots.
  int Run(int layer, const std::vector<uint16_t>& experts, int64_t step, bool decode, int n_tokens,
          std::optional<Array<uint16_t>> ids, std::optional<Array<float>> probs, bool continued) {
    const Event event = Checked(layer, experts, step, decode, n_tokens, ids, probs, continued);
    int missed = 0;
    ThrowIfError(Replayer(&cache_).Run(event, &missed));
    return missed;
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
  // The event that these arguments make, pointing into them; throws where they make none.
  Event Checked(int layer, const std::vector<uint16_t>& experts, int64_t step, bool decode,
                int n_tokens, const std::optional<Array<uint16_t>>& ids,
                const std::optional<Array<float>>& probs, bool continued) const {
    if (open_) Throw("the last event is still open: call end() first");
    if (layer < 0 || layer >= geometry_.n_layers) Throw("no such layer");
    if (n_tokens < 1) Throw("n_tokens: at least 1");
    std::vector<bool> seen(geometry_.n_experts);
    for (const uint16_t e : experts) {
      if (e >= geometry_.n_experts) Throw("no such expert");
      if (seen[e]) Throw("an expert is named twice");
      seen[e] = true;
    }
    if (ids && (ids->ndim() != 2 || ids->shape(0) != n_tokens)) Throw("ids: a row per token");
    if (ids && ids->shape(1) > geometry_.n_experts) Throw("ids: more than a layer has experts");
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
    return event;
  }
  [[noreturn]] static void Throw(const char* what) {
    ThrowIfError(Status(Code::kInvalidArgument, what));
    std::abort();
  }
  Geometry geometry_;
  Cache cache_;
  std::vector<Placement> placements_;
  bool open_ = false;
};

// (name, weights, meaning) of each column of reuse-biased.
py::list ReuseColumns() {
  py::list columns;
  for (const ReuseColumn& column : kReuseColumns) {
    const std::vector<float> weights(column.weights, column.weights + kReuseShareCount);
    columns.append(py::make_tuple(column.name, weights, column.meaning));
  }
  return columns;
}

std::vector<std::string> FeatureNames() {
  std::vector<std::string> names;
  for (const ReuseColumn& column : kReuseColumns) names.push_back(column.name);
  return names;
}

std::vector<float> ReuseShares() {
  return std::vector<float>(kReuseShares, kReuseShares + kReuseShareCount);
}

}  // namespace

py::dict CountsDict(const CacheCounts& counts) {
  py::dict dict;
  dict["events"] = counts.events;
  dict["hits"] = counts.hits;
  dict["misses"] = counts.misses;
  dict["evictions"] = counts.evictions;
  return dict;
}

void RegisterCache(py::module_& module) {
  module.def("policy_names", &PolicyNames);
  module.def("live_policy_names", &LivePolicyNames);
  module.def("reuse_columns", &ReuseColumns);
  module.def("reuse_shares", &ReuseShares);
  module.def("feature_names", &FeatureNames);

  py::class_<PyCache>(module, "Cache")
      .def(py::init<int, int, int, const std::string&, const std::optional<py::bytes>&>(),
           py::arg("n_layers"), py::arg("n_experts"), py::arg("n_slots"), py::arg("policy"),
           py::arg("profile") = py::none())
      .def("begin", &PyCache::Begin, py::arg("layer"), py::arg("experts"), py::arg("step") = 0,
           py::arg("decode") = true, py::arg("n_tokens") = 1, py::arg("ids") = py::none(),
           py::arg("probs") = py::none(), py::arg("continued") = false)
      .def("run", &PyCache::Run, py::arg("layer"), py::arg("experts"), py::arg("step") = 0,
           py::arg("decode") = true, py::arg("n_tokens") = 1, py::arg("ids") = py::none(),
           py::arg("probs") = py::none(), py::arg("continued") = false)
      .def("failed", &PyCache::Failed, py::arg("expert"))
      .def("end", &PyCache::End)
      .def("clear", &PyCache::Clear)
      .def("expect", &PyCache::Expect, py::arg("bonus").none(true))
      .def("counts", &PyCache::Counts)
      .def("residents", &PyCache::Residents)
      .def_property_readonly("resident", &PyCache::Resident);
}

}  // namespace remoe::bindings

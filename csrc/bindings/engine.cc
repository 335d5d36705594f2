#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <csignal>
#include <cstring>

#include "bindings/bindings.h"
#include "device/streamed_model.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

py::dict Counts(const StreamedModel& model) {
  py::dict dict;
  if (model.store() == nullptr) return dict;
  const StoreCounts counts = model.store()->counts();
  dict["hits"] = counts.hits;
  dict["misses"] = counts.misses;
  dict["bytes_read"] = counts.bytes_read;
  dict["device_bytes"] = counts.device_bytes;
  dict["stall_ns"] = counts.stall_ns;
  dict["read_ns"] = counts.read_ns;
  dict["events"] = counts.events;
  dict["evictions"] = counts.evictions;
  dict["warm_experts"] = counts.warm_experts;
  dict["warm_bytes"] = counts.warm_bytes;
  dict["begun_misses"] = counts.begun_misses;
  dict["ahead_misses"] = counts.ahead_misses;
  dict["ahead_useful_bytes"] = counts.ahead_useful_bytes;
  dict["ahead_wasted_bytes"] = counts.ahead_wasted_bytes;
  dict["ahead_given_up"] = counts.ahead_given_up;
  dict["predict_ns"] = model.lookahead().predict_ns();
  dict["ffn_ns"] = model.ffn_ns.load();
  dict["trace_ns"] = model.trace_ns.load();
  return dict;
}

py::dict CountsByLayer(const StreamedModel& model) {
  std::vector<uint64_t> hits, misses;
  if (model.store() != nullptr) {
    for (const LayerCounts& layer : model.store()->layer_counts()) {
      hits.push_back(layer.hits);
      misses.push_back(layer.misses);
    }
  }
  py::dict dict;
  dict["hits"] = hits;
  dict["misses"] = misses;
  return dict;
}

py::dict Prefetch(const StreamedModel& model) {
  py::dict dict;
  const Lookahead& lookahead = model.lookahead();
  if (model.store() == nullptr) return dict;
  const Cache& cache = model.store()->cache();
  dict["state"] = lookahead.started() ? lookahead.governor().state() : "off";
  dict["spare_slots"] = cache.total_slots() - cache.geometry().n_slots;
  dict["why_not"] = lookahead.why_not();
  if (!lookahead.started()) return dict;
  dict["gain_ms"] = lookahead.governor().gain_ms();
  dict["trials"] = lookahead.governor().trials();
  dict["losses"] = lookahead.governor().losses();
  dict["needed_certainty"] = lookahead.governor().NeededCertainty();
  dict["first_rank_certainty"] = lookahead.first_rank_certainty();
  return dict;
}

PrefetchMode ModeOf(const std::string& name) {
  if (name == "on") return PrefetchMode::kOn;
  if (name == "auto") return PrefetchMode::kAuto;
  if (name != "off") throw py::value_error("prefetch is auto, on or off, not '" + name + "'");
  return PrefetchMode::kOff;
}

// While one lives, Ctrl-C also tells the model to stop at its next layer; Python's own handler runs
// as ever, and raises KeyboardInterrupt once the call has returned. One at a time.
StreamedModel* g_interruptible = nullptr;
struct sigaction g_previous;

void OnInterrupt(int signal, siginfo_t* info, void* context) {
  if (g_interruptible != nullptr) g_interruptible->Interrupt();
  if (g_previous.sa_flags & SA_SIGINFO) {
    g_previous.sa_sigaction(signal, info, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
  }
}

void WatchInterrupt(StreamedModel* model) {
  g_interruptible = model;
  struct sigaction action{};
  action.sa_sigaction = OnInterrupt;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGINT, &action, &g_previous);
}

void UnwatchInterrupt() {
  sigaction(SIGINT, &g_previous, nullptr);
  g_interruptible = nullptr;
}

}  // namespace

void RegisterEngine(py::module_& module) {
  module.def("check_abi", [] { ThrowIfError(RegisterDevice()); });

  py::class_<StreamedModel>(module, "StreamedModel")
      .def_static(
          "open",
          [](const Path& path, const std::string& backend, bool direct, int depth, bool repack,
             const std::map<std::string, py::bytes>& overlay) {
            LoadOptions options;
            options.reader.backend = backend;
            options.reader.direct = direct;
            options.reader.depth = depth;
            options.repack = repack;
            for (const auto& [name, bytes] : overlay) {
              const std::string_view view(bytes);
              options.overlay[name].assign(view.begin(), view.end());
            }
            Result<std::unique_ptr<StreamedModel>> model = [&] {
              py::gil_scoped_release release;
              return StreamedModel::Open(path.bytes, options);
            }();
            ThrowIfError(model.status());
            return std::move(model.value());
          },
          py::arg("path"), py::kw_only(), py::arg("backend") = "auto", py::arg("direct") = true,
          py::arg("depth") = 0, py::arg("repack") = false,
          py::arg("overlay") = std::map<std::string, py::bytes>())
      .def(
          "load",
          [](StreamedModel& model, uintptr_t params, std::function<bool(float)> progress) {
            std::function<bool(float)> report;
            if (progress) {
              report = [&progress](float fraction) {
                py::gil_scoped_acquire acquire;
                // An exception must not unwind through llama.cpp: it cancels, and is raised below.
                try {
                  return progress(fraction);
                } catch (py::error_already_set& error) {
                  error.restore();
                  return false;
                }
              };
            }
            Result<llama_model*> loaded = [&] {
              py::gil_scoped_release release;
              return model.Load(*reinterpret_cast<const llama_model_params*>(params), report);
            }();
            if (PyErr_Occurred()) throw py::error_already_set();
            ThrowIfError(loaded.status());
            return reinterpret_cast<uintptr_t>(loaded.value());
          },
          py::arg("params"), py::arg("progress") = std::function<bool(float)>())
      .def(
          "attach",
          [](StreamedModel& model, int n_slots, const std::string& policy, bool lock,
             const std::optional<py::bytes>& profile, const std::string& prefetch) {
            AttachOptions options;
            options.profile = ToProfile(profile);
            options.n_slots = n_slots;
            options.policy = policy;
            options.lock = lock;
            options.prefetch = ModeOf(prefetch);
            ThrowIfError(model.Attach(options));
          },
          py::kw_only(), py::arg("n_slots"), py::arg("policy") = "reuse-biased",
          py::arg("lock") = false, py::arg("profile") = py::none(), py::arg("prefetch") = "off")
      .def(
          "start_trace",
          [](StreamedModel& model, const Path& path, const std::string& fingerprint,
             const std::string& meta) {
            ThrowIfError(model.StartTrace(path.bytes, fingerprint, meta));
          },
          py::arg("path"), py::arg("fingerprint") = "", py::arg("meta") = "{}")
      .def(
          "warm",
          [](StreamedModel& model, const std::vector<ExpertId>& experts) {
            return model.store() ? model.store()->Warm(experts) : 0;
          },
          py::arg("experts"))
      .def("finish_warming",
           [](StreamedModel& model) {
             const py::gil_scoped_release release;
             if (model.store()) model.store()->FinishWarming();
           })
      .def("uses",
           [](const StreamedModel& model) {
             const std::vector<uint32_t> none;
             const auto& uses = model.store() ? model.store()->uses() : none;
             return py::array_t<uint32_t>(uses.size(), uses.data());
           })
      .def("choices",
           [](const StreamedModel& model) {
             const std::vector<uint32_t> none;
             const auto& choices = model.store() ? model.store()->choices() : none;
             return py::array_t<uint32_t>(choices.size(), choices.data());
           })
      .def(
          "expect",
          [](StreamedModel& model, const Bonus& bonus) {
            ExpertStore* store = model.store();
            if (store == nullptr) return false;
            return store->Expect(CheckedBonus(bonus, store->cache().geometry().total()));
          },
          py::arg("bonus").none(true))
      .def("stop_trace", [](StreamedModel& model) { ThrowIfError(model.StopTrace()); })
      .def_property_readonly("tracing", &StreamedModel::tracing)
      .def_property_readonly("trace_events", &StreamedModel::trace_events)
      .def_property_readonly(
          "trace_failure",
          [](const StreamedModel& model) { return Readable(model.trace_failure()); })
      .def_property_readonly("router_probabilities", &StreamedModel::router_probabilities)
      .def("budget_for", &StreamedModel::BudgetFor, py::arg("n_slots"))
      .def("slots_for", &StreamedModel::SlotsFor, py::arg("budget_bytes"))
      .def("scratch_bytes", &StreamedModel::ScratchBytes, py::arg("n_tokens"))
      .def_property_readonly("slot_bytes",
                             [](const StreamedModel& model) { return model.layout().slot_bytes(); })
      .def_property_readonly("n_layers",
                             [](const StreamedModel& model) { return model.layers().size(); })
      .def_property_readonly("n_experts", &StreamedModel::n_experts)
      .def_property_readonly("n_experts_used", &StreamedModel::n_experts_used)
      .def_property_readonly("total_experts", &StreamedModel::total_experts)
      .def_property_readonly("expert_bytes",
                             [](const StreamedModel& model) { return model.file().expert_bytes(); })
      .def_property_readonly("dense_bytes",
                             [](const StreamedModel& model) { return model.file().dense_bytes(); })
      .def_property_readonly("dense_bytes_read", &StreamedModel::dense_bytes_read)
      .def_property_readonly("load_seconds", &StreamedModel::load_seconds)
      .def_property_readonly("repacked", &StreamedModel::repacked)
      .def_property_readonly("notes",
                             [](const StreamedModel& model) { return Readable(model.notes()); })
      .def_property_readonly("budget_bytes",
                             [](const StreamedModel& model) -> uint64_t {
                               return model.store() ? model.store()->budget_bytes() : 0;
                             })
      .def_property_readonly("n_slots",
                             [](const StreamedModel& model) {
                               return model.store() ? model.store()->cache().total_slots() : 0;
                             })
      .def_property_readonly("policy",
                             [](const StreamedModel& model) {
                               return model.store() ? model.store()->policy_name() : "";
                             })
      .def_property_readonly("io",
                             [](const StreamedModel& model) {
                               py::dict dict;
                               if (model.store() == nullptr) return dict;
                               const Reader& reader = model.store()->reader();
                               dict["backend"] = reader.backend();
                               dict["direct"] = reader.direct();
                               dict["depth"] = reader.depth();
                               dict["probed_bytes_per_s"] = model.probed_bytes_per_s();
                               return dict;
                             })
      .def_property_readonly("locked",
                             [](const StreamedModel& model) {
                               return model.store() && model.store()->slab().locked();
                             })
      .def_property_readonly("huge_pages",
                             [](const StreamedModel& model) {
                               return model.store() && model.store()->slab().huge_pages();
                             })
      .def_property_readonly("prefetch", &Prefetch)
      .def("counts", &Counts)
      .def("counts_by_layer", &CountsByLayer)
      .def("check_unchanged",
           [](const StreamedModel& model) {
             if (model.store() != nullptr) ThrowIfError(model.store()->reader().CheckUnchanged());
           })
      .def("set_faults",
           [](StreamedModel& model, const FaultPlan& plan) {
             if (model.store() != nullptr) model.store()->SetFaults(plan);
           })
      .def("raise_failure", [](StreamedModel& model) { ThrowIfError(model.TakeFailure()); })
      .def("interrupt", &StreamedModel::Interrupt)
      .def("clear_interrupt", &StreamedModel::ClearInterrupt)
      .def_property_readonly("interrupted", &StreamedModel::interrupted)
      .def("watch_interrupt", [](StreamedModel& model) { WatchInterrupt(&model); });
  module.def("unwatch_interrupt", &UnwatchInterrupt);
}

}  // namespace remoe::bindings

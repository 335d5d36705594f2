#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>

#include "bindings/bindings.h"
#include "bindings/device_counters.h"
#include "device/last_words.h"
#include "device/loader.h"
#include "device/streamed_model.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

// Every name in counts(), and what it counts.
py::dict CounterNames() {
  py::dict dict;
  ForEachCounter(StoreCounts(),
                 [&](const char* name, const char* meaning, uint64_t) { dict[name] = meaning; });
  for (const DeviceCounter& counter : kDeviceCounters) dict[counter.name] = counter.meaning;
  return dict;
}

py::dict Counts(const StreamedModel& model) {
  py::dict dict;
  if (model.store() == nullptr) return dict;
  ForEachCounter(model.store()->counts(),
                 [&](const char* name, const char*, uint64_t value) { dict[name] = value; });
  for (const DeviceCounter& counter : kDeviceCounters) dict[counter.name] = counter.value(model);
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
  const PrefetchPlanner& planner = model.planner();
  if (model.store() == nullptr) return dict;
  const Cache& cache = model.store()->cache();
  dict["state"] = planner.started() ? planner.governor().state() : "off";
  dict["spare_slots"] = cache.total_slots() - cache.geometry().n_slots;
  dict["why_not"] = planner.why_not();
  if (!planner.started()) return dict;
  dict["gain_ms"] = planner.governor().gain_ms();
  dict["trials"] = planner.governor().trials();
  dict["losses"] = planner.governor().losses();
  dict["needed_certainty"] = planner.governor().NeededCertainty();
  dict["first_rank_certainty"] = planner.first_rank_certainty();
  return dict;
}

StepKind KindOf(const std::string& name) {
  if (name == "decode") return StepKind::kDecode;
  if (name == "draft") return StepKind::kDraft;
  if (name == "prompt") return StepKind::kPrompt;
  if (name != "by-tokens") {
    ThrowIfError(Status(Code::kInvalidArgument,
                        "steps are decode, draft, prompt or by-tokens, not '" + name + "'"));
  }
  return StepKind::kByTokens;
}

PrefetchMode ModeOf(const std::string& name) {
  if (name == "on") return PrefetchMode::kOn;
  if (name == "auto") return PrefetchMode::kAuto;
  if (name != "off") {
    ThrowIfError(Status(Code::kInvalidArgument, "prefetch is auto, on or off, not '" + name + "'"));
  }
  return PrefetchMode::kOff;
}

// Ctrl-C while a model computes: it is told to stop at its next layer, and Python is not told. Whoever
// watches tells Python afterwards, when it can raise. Two system calls a step; Python's own way to
// change a handler costs ten times as much. One model at a time, from the main thread.
std::atomic<StreamedModel*> g_interruptible{nullptr};
std::atomic<bool> g_pressed{false};
struct sigaction g_previous;

void OnInterrupt(int) {
  g_pressed = true;
  if (StreamedModel* model = g_interruptible) model->interruption().Raise();
}

// RETURNS: whether it watches. A signal that is ignored, or ends the process, is left as it is.
bool WatchInterrupt(StreamedModel* model) {
  g_pressed = false;
  g_interruptible = model;
  struct sigaction action{};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, &g_previous);
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) return true;
  if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) return true;
  sigaction(SIGINT, &g_previous, nullptr);
  g_interruptible = nullptr;
  return false;
}

// RETURNS: whether the signal came. REQUIRES: WatchInterrupt() returned true.
bool UnwatchInterrupt() {
  sigaction(SIGINT, &g_previous, nullptr);
  g_interruptible = nullptr;
  return g_pressed;
}

}  // namespace

void RegisterEngine(py::module_& module) {
  module.def("counter_names", &CounterNames);
  module.def("check_abi", [] { ThrowIfError(RegisterDevice()); });

  py::class_<LastWords>(module, "LastWords")
      .def(py::init([](const Path& path) { return std::make_unique<LastWords>(path.bytes); }),
           py::arg("path"));

  py::class_<StreamedModel>(module, "StreamedModel")
      .def_static(
          "open",
          [](const Path& path, const std::string& backend, bool direct, int depth, bool repack,
             const std::map<std::string, py::bytes>& overlay, const std::string& experts_on,
             bool peers, const std::optional<Path>& coarse) {
            LoadOptions options;
            if (coarse) options.coarse = coarse->bytes;
            options.experts_on = experts_on;
            options.reader.backend = backend;
            options.reader.direct = direct;
            options.reader.depth = depth;
            options.repack = repack;
            options.peers = peers;
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
          py::arg("overlay") = std::map<std::string, py::bytes>(), py::arg("experts_on") = "",
          py::arg("peers") = false, py::arg("coarse") = py::none())
      .def(
          "set_dial",
          [](StreamedModel& model, float swap_near, float skip_cold, float skip_small,
             float coarse_below) {
            ThrowIfError(model.SetDial({swap_near, skip_cold, skip_small, coarse_below}));
          },
          py::kw_only(), py::arg("swap_near") = 0, py::arg("skip_cold") = 0,
          py::arg("skip_small") = 0, py::arg("coarse_below") = 0)
      .def("check_dial", [](const StreamedModel& model) { ThrowIfError(model.CheckDial()); })
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
              return Load(&model, *reinterpret_cast<const llama_model_params*>(params), report);
            }();
            if (PyErr_Occurred()) throw py::error_already_set();
            ThrowIfError(loaded.status());
            return reinterpret_cast<uintptr_t>(loaded.value());
          },
          py::arg("params"), py::arg("progress") = std::function<bool(float)>())
      .def(
          "attach",
          [](StreamedModel& model, int n_slots, const std::string& policy, bool lock,
             const std::optional<py::bytes>& profile, const std::string& prefetch, int most_slots) {
            AttachOptions options;
            options.most_slots = most_slots;
            options.profile = ToProfile(profile);
            options.n_slots = n_slots;
            options.policy = policy;
            options.lock = lock;
            options.prefetch = ModeOf(prefetch);
            ThrowIfError(model.Attach(options));
          },
          py::kw_only(), py::arg("n_slots"), py::arg("policy") = "reuse-biased",
          py::arg("lock") = false, py::arg("profile") = py::none(), py::arg("prefetch") = "off",
          py::arg("most_slots") = 0)
      .def(
          "resize",
          [](StreamedModel& model, int n_slots) {
            const py::gil_scoped_release release;
            return model.Resize(n_slots);
          },
          py::arg("n_slots"))
      .def("finish_resize",
           [](StreamedModel& model) {
             const py::gil_scoped_release release;
             model.FinishResize();
           })
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
            // Who has the model's lock may be waiting for the GIL, in llama.cpp's log.
            const py::gil_scoped_release release;
            return model.PrefetchForStart(experts);
          },
          py::arg("experts"))
      .def("finish_warm_start", &StreamedModel::FinishStart,
           py::call_guard<py::gil_scoped_release>())
      .def("finish_warming", &StreamedModel::FinishStart,  // its name until version 0.3
           py::call_guard<py::gil_scoped_release>())
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
            const float* values = CheckedBonus(bonus, store->cache().geometry().total());
            const py::gil_scoped_release release;
            return model.Expect(values);
          },
          py::arg("bonus").none(true))
      .def(
          "declare_steps",
          [](StreamedModel& model, const std::string& kind, int conversation) {
            const StepKind found = KindOf(kind);
            const py::gil_scoped_release release;
            model.DeclareSteps(found, std::max(conversation, kNoConversation));
          },
          py::arg("kind"), py::arg("conversation") = kNoConversation)
      .def("stop_trace", [](StreamedModel& model) { ThrowIfError(model.recorder().Stop()); })
      .def_property_readonly("tracing",
                             [](const StreamedModel& model) { return model.recorder().on(); })
      .def_property_readonly("trace_events",
                             [](const StreamedModel& model) { return model.recorder().n_events(); })
      .def_property_readonly(
          "trace_failure",
          [](const StreamedModel& model) { return Readable(model.recorder().failure()); })
      .def(
          "router_bytes",
          [](const StreamedModel& model, const std::string& prefetch) {
            return model.RouterBytes(ModeOf(prefetch));
          },
          py::arg("prefetch"))
      .def_property_readonly("router_probabilities", &StreamedModel::router_probabilities)
      .def(
          "budget_for",
          [](const StreamedModel& model, int n) { return model.sizes().BudgetFor(n); },
          py::arg("n_slots"))
      .def(
          "slots_for",
          [](const StreamedModel& model, uint64_t n) { return model.sizes().SlotsFor(n); },
          py::arg("budget_bytes"))
      .def(
          "scratch_bytes",
          [](const StreamedModel& model, int n) { return model.sizes().ScratchBytes(n); },
          py::arg("n_tokens"))
      .def_property_readonly(
          "slot_bytes",
          [](const StreamedModel& model) { return model.sizes().layout().slot_bytes(); })
      .def_property_readonly("n_layers",
                             [](const StreamedModel& model) { return model.layers().size(); })
      .def_property_readonly("n_experts",
                             [](const StreamedModel& model) { return model.sizes().n_experts(); })
      .def_property_readonly(
          "n_experts_used",
          [](const StreamedModel& model) { return model.file().n_experts_used(); })
      .def_property_readonly(
          "total_experts", [](const StreamedModel& model) { return model.sizes().total_experts(); })
      .def_property_readonly("expert_bytes",
                             [](const StreamedModel& model) { return model.file().expert_bytes(); })
      .def_property_readonly("dense_bytes",
                             [](const StreamedModel& model) { return model.file().dense_bytes(); })
      .def_property_readonly("dense_bytes_read", &StreamedModel::dense_bytes_read)
      .def_property_readonly("load_seconds", &StreamedModel::load_seconds)
      .def_property_readonly("repacked", &StreamedModel::repacked)
      .def_property_readonly("experts_on",
                             [](const StreamedModel& model) { return model.options().experts_on; })
      .def_property_readonly("notes",
                             [](const StreamedModel& model) { return Readable(model.notes()); })
      .def_property_readonly("budget_bytes",
                             [](const StreamedModel& model) -> uint64_t {
                               if (model.store() == nullptr) return 0;
                               return model.store()->budget_bytes() +
                                      model.RouterBytes(PrefetchMode::kOff);
                             })
      .def_property_readonly(
          "n_slots",
          [](const StreamedModel& model) { return model.store() ? model.store()->n_slots() : 0; })
      .def_property_readonly("most_slots",
                             [](const StreamedModel& model) {
                               return model.store() ? model.store()->most_slots() : 0;
                             })
      .def_property_readonly("untouched_bytes",
                             [](const StreamedModel& model) -> uint64_t {
                               return model.store() ? model.store()->untouched_bytes() : 0;
                             })
      .def_property_readonly("policy",
                             [](const StreamedModel& model) {
                               return model.store() ? model.store()->policy_name() : "";
                             })
      .def_property_readonly("io",
                             [](const StreamedModel& model) {
                               py::dict dict;
                               if (model.store() == nullptr) return dict;
                               const Reader& reader = *model.reader();
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
           [](const StreamedModel& model) { ThrowIfError(model.reader()->CheckUnchanged()); })
      .def("set_faults",
           [](StreamedModel& model, const FaultPlan& plan) { model.reader()->SetFaults(plan); })
      .def("raise_failure", [](StreamedModel& model) { ThrowIfError(model.failure().Take()); })
      .def("interrupt", [](StreamedModel& model) { model.interruption().Raise(); })
      .def("clear_interrupt", [](StreamedModel& model) { model.interruption().Clear(); })
      .def_property_readonly(
          "interrupted", [](const StreamedModel& model) { return model.interruption().raised(); })
      .def("watch_interrupt", [](StreamedModel& model) { return WatchInterrupt(&model); });
  module.def("unwatch_interrupt", &UnwatchInterrupt);
}

}  // namespace remoe::bindings

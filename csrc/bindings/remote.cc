#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "device/expert_worker.h"
#include "device/peers.h"
#include "remote/openssl.h"
#include "wire/checksum.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

py::dict CountsOf(const StreamedModel& model) {
  py::dict dict;
  if (const RemoteSource* peers = FindPeers(model)) {
    ForEachCounter(peers->counts(),
                   [&](const char* name, const char*, uint64_t value) { dict[name] = value; });
  }
  return dict;
}

py::list Seen(const StreamedModel& model) {
  py::list list;
  const RemoteSource* peers = FindPeers(model);
  if (peers == nullptr) return list;
  for (const RemoteSource::Seen& seen : peers->peers()) {
    py::dict dict;
    dict["address"] = seen.peer.address;
    dict["state"] = seen.peer.state;
    dict["why"] = seen.peer.why;
    dict["experts"] = seen.peer.n_experts;
    dict["capacity"] = seen.peer.capacity;
    ForEachCounter(seen.counts,
                   [&](const char* name, const char*, uint64_t value) { dict[name] = value; });
    list.append(dict);
  }
  return list;
}

py::dict WorkerCountsOf(const ExpertWorker& worker) {
  const WorkerCounts counts = worker.counts();
  py::dict dict;
  dict["clients"] = counts.clients;
  dict["answers"] = counts.answers;
  dict["rows"] = counts.rows;
  dict["busy"] = counts.busy;
  dict["expired"] = counts.expired;
  dict["refused"] = counts.refused;
  dict["compute_us"] = counts.compute_us;
  dict["weights_bytes"] = counts.weights_bytes;
  dict["experts"] = counts.experts;
  dict["moved_bytes"] = counts.moved_bytes;
  return dict;
}

}  // namespace

void RegisterRemote(py::module_& module) {
  module.def(
      "check_address",
      [](const py::str& text, bool keys) {
        // What is no UTF-8 is spelled out: it is no address, and the error says which text is none.
        const auto bytes = py::reinterpret_steal<py::bytes>(
            PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
        if (!bytes) throw py::error_already_set();
        const Result<Address> address = Address::Parse(std::string(bytes));
        ThrowIfError(address.status());
        ThrowIfError(address.value().CheckKeys(keys));
        return address.value().text();
      },
      py::arg("text"), py::arg("keys") = false);
  module.def("tls_library", [] {
    const Result<const OpenSsl*> found = OpenSsl::Find();
    ThrowIfError(found.status());
    return found.value()->version();
  });
  module.def("checksum64", [](const py::buffer& bytes) {
    const py::buffer_info info = bytes.request();
    Checksum64 sum;
    sum.Add(info.ptr, static_cast<size_t>(info.size * info.itemsize));
    return sum.sum();
  });
  module.def(
      "connect_peers",
      [](StreamedModel& model, const std::vector<std::string>& addresses, const std::string& engine,
         const std::string& fingerprint, const Path& keys, int max_tokens, int audit_every,
         uint64_t move_bytes_per_s, bool hedge) {
        PeerOptions options;
        options.addresses = addresses;
        options.engine = engine;
        options.fingerprint = fingerprint;
        options.source.max_tokens = max_tokens;
        options.source.audit_every = std::max(1, audit_every);
        options.source.move_bytes_per_s = move_bytes_per_s;
        options.keys = keys.bytes;
        options.source.hedge = hedge;
        ThrowIfError([&] {
          const py::gil_scoped_release release;
          return ConnectPeers(&model, options);
        }());
      },
      py::arg("model"), py::arg("addresses"), py::kw_only(), py::arg("engine"),
      py::arg("fingerprint"), py::arg("keys") = Path(),
      py::arg("max_tokens") = RemoteSource::Settings().max_tokens,
      py::arg("audit_every") = RemoteSource::Settings().audit_every,
      py::arg("move_bytes_per_s") = RemoteSource::Settings().move_bytes_per_s,
      py::arg("hedge") = true);
  module.def(
      "set_peers",
      [](const StreamedModel& model, const std::vector<std::string>& texts) {
        RemoteSource* peers = FindPeers(model);
        if (peers == nullptr) return;
        std::vector<Address> addresses;
        for (const std::string& text : texts) {
          Result<Address> address = Address::Parse(text);
          ThrowIfError(address.status());
          ThrowIfError(address.value().CheckKeys(peers->has_keys()));
          addresses.push_back(address.value());
        }
        const py::gil_scoped_release release;
        peers->SetPeers(addresses);
      },
      py::arg("model"), py::arg("addresses"));
  module.def("worker_bytes", &ExpertWorker::LeastBytes, py::arg("model"), py::arg("n_experts"));
  module.def("peer_check_bytes", [](const StreamedModel& model) { return CheckBytes(model); });
  module.def(
      "await_peers",
      [](const StreamedModel& model, int timeout_ms) {
        const py::gil_scoped_release release;
        const RemoteSource* peers = FindPeers(model);
        return peers == nullptr || peers->Await(timeout_ms);
      },
      py::arg("model"), py::arg("timeout_ms"));
  module.def("peers", &Seen);
  module.def("n_unserved", [](const StreamedModel& model) {
    const RemoteSource* peers = FindPeers(model);
    return peers == nullptr ? 0 : peers->n_unserved();
  });
  module.def("peer_counts", &CountsOf);
  module.def("take_peer_lines", [](const StreamedModel& model) {
    RemoteSource* peers = FindPeers(model);
    py::list lines;
    if (peers == nullptr) return lines;
    for (const PeerLine& line : peers->TakeLines()) {
      lines.append(py::make_tuple(Readable(line.about), Readable(line.text)));
    }
    return lines;
  });

  py::class_<ExpertWorker>(module, "ExpertWorker")
      .def_static(
          "open",
          [](const Path& path, const std::vector<ExpertId>& experts, uint64_t budget_bytes,
             const std::string& listen, const std::string& engine, const std::string& fingerprint,
             const Path& keys, bool chosen_by_engines, uint64_t move_bytes_per_s, int threads,
             bool repack, const std::string& backend, bool direct, bool lock) {
            ExpertWorker::Options options;
            options.keys = keys.bytes;
            options.chosen_by_engines = chosen_by_engines;
            options.limits.move_bytes_per_s = std::max<uint64_t>(1, move_bytes_per_s);
            const Result<Address> address = Address::Parse(listen);
            ThrowIfError(address.status());
            options.address = address.value();
            options.experts = experts;
            options.budget_bytes = budget_bytes;
            options.engine = engine;
            options.fingerprint = fingerprint;
            options.n_threads = threads;
            options.load.repack = repack;
            options.load.reader.backend = backend;
            options.load.reader.direct = direct;
            options.lock = lock;
            Result<std::unique_ptr<ExpertWorker>> worker = [&] {
              const py::gil_scoped_release release;
              return ExpertWorker::Open(path.bytes, options);
            }();
            ThrowIfError(worker.status());
            return std::move(worker.value());
          },
          py::arg("path"), py::kw_only(), py::arg("experts"), py::arg("budget_bytes"),
          py::arg("listen"), py::arg("engine"), py::arg("fingerprint"), py::arg("keys") = Path(),
          py::arg("chosen_by_engines") = false,
          py::arg("move_bytes_per_s") = WorkerServer::Limits().move_bytes_per_s,
          py::arg("threads") = 1, py::arg("repack") = false, py::arg("backend") = "auto",
          py::arg("direct") = true, py::arg("lock") = false)
      .def("run",
           [](ExpertWorker& worker) {
             ThrowIfError([&] {
               const py::gil_scoped_release release;
               return worker.Run();
             }());
           })
      .def("stop", &ExpertWorker::Stop)
      .def("check",
           [](ExpertWorker& worker) {
             ThrowIfError([&] {
               const py::gil_scoped_release release;
               return worker.Check();
             }());
           })
      .def_property_readonly("port", &ExpertWorker::port)
      .def_property_readonly("budget_bytes", &ExpertWorker::budget_bytes)
      .def_property_readonly("n_slots", &ExpertWorker::n_slots)
      .def("take_lines", [](ExpertWorker& worker) { return Readable(worker.TakeLines()); })
      .def("counts", &WorkerCountsOf);
}

}  // namespace remoe::bindings

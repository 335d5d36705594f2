#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "base/prob8.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "trace/trace_file.h"
#include "trace/trace_writer.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

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

void RegisterTrace(py::module_& module) {
  module.def("parse_trace", &ParseTraceBytes, py::arg("data"), py::arg("path"));
  module.def("to_prob8", py::vectorize([](float p) { return ToProb8(p); }), py::arg("p"));
  module.def("from_prob8", py::vectorize([](uint8_t code) { return FromProb8(code); }),
             py::arg("code"));

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

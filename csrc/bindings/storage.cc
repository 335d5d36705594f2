#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/rounding.h"
#include "bindings/bindings.h"
#include "storage/probe.h"
#include "storage/reader.h"

namespace py = pybind11;

namespace remoe::bindings {
namespace {

// A Reader with buffers of its own: reads are handed over as bytes, on the caller's thread.
class BufferedReader {
 public:
  BufferedReader(const std::vector<std::string>& paths, const ReaderOptions& options) {
    auto reader = [&] {
      const py::gil_scoped_release release;
      return OpenReader(paths, options);
    }();
    ThrowIfError(reader.status());
    reader_ = std::move(reader.value());
  }

  // Runs after the reader has let go of every buffer. Releases the GIL while it waits.
  void Close() {
    const py::gil_scoped_release release;
    reader_.reset();
  }

  Reader& reader() const {
    if (reader_ == nullptr) {
      ThrowIfError(Status(Code::kInvalidArgument, "the reader is closed"));
    }
    return *reader_;
  }

  // Spans of (file, offset, n_bytes); returns the tag of the first, the others follow it.
  uint64_t Submit(const std::vector<std::tuple<int, uint64_t, uint64_t>>& spans, bool background) {
    Reader& reader = this->reader();
    std::vector<Read> reads;
    const py::gil_scoped_release release;
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t first = n_submitted_;
    for (const auto& [file, offset, n_bytes] : spans) {
      const uint64_t size = RoundUp(offset % kPage + n_bytes, kPage);
      Bytes bytes(static_cast<uint8_t*>(std::aligned_alloc(kPage, size > 0 ? size : kPage)));
      if (bytes == nullptr) {
        lock.unlock();
        const py::gil_scoped_acquire acquire;
        ThrowIfError(Status(Code::kOutOfMemory,
                            "no memory for a read of " + std::to_string(n_bytes) + " bytes"));
      }
      Read read;
      read.file = file;
      read.offset = offset;
      read.n_bytes = n_bytes;
      read.dest = bytes.get() + offset % kPage;
      read.tag = n_submitted_++;
      read.background = background;
      reads.push_back(read);
      buffers_.emplace(read.tag, std::move(bytes));
    }
    lock.unlock();
    reader.Submit(reads.data(), static_cast<int>(reads.size()),
                  [this](const Read& read, const Status& status) {
                    const std::lock_guard<std::mutex> guard(mutex_);
                    arrived_.emplace_back(read, status);
                  });
    return first;
  }

  // Waits for all, and returns tag -> bytes, or the message of the failure.
  py::dict Drain() {
    Reader& reader = this->reader();
    {
      const py::gil_scoped_release release;
      reader.Drain();
    }
    std::vector<std::pair<Read, Status>> arrived;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      arrived.swap(arrived_);
    }
    py::dict answers;
    for (const auto& [read, status] : arrived) {
      if (status.ok()) {
        answers[py::int_(read.tag)] =
            py::bytes(reinterpret_cast<const char*>(read.dest), read.n_bytes);
      } else {
        answers[py::int_(read.tag)] = py::str(status.message());
      }
      const std::lock_guard<std::mutex> guard(mutex_);
      buffers_.erase(read.tag);
    }
    return answers;
  }

  int CancelBackground() const {
    Reader& reader = this->reader();
    const py::gil_scoped_release release;
    return reader.CancelBackground();
  }

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  using Bytes = std::unique_ptr<uint8_t, Free>;

  std::mutex mutex_;
  uint64_t n_submitted_ = 0;           // guarded by mutex_, as all below
  std::map<uint64_t, Bytes> buffers_;  // by tag
  std::vector<std::pair<Read, Status>> arrived_;
  std::unique_ptr<Reader> reader_;  // last: its threads end before the buffers go
};

py::dict CountsOf(const Reader& reader) {
  const ReaderCounts counts = reader.counts();
  py::dict answer;
  answer["reads"] = counts.reads;
  answer["bytes"] = counts.bytes;
  answer["device_bytes"] = counts.device_bytes;
  answer["errors"] = counts.errors;
  answer["operations"] = counts.operations;
  answer["cancelled"] = counts.cancelled;
  answer["background_bytes"] = counts.background_bytes;
  return answer;
}

py::dict PointOf(const ProbePoint& point) {
  py::dict answer;
  answer["block_bytes"] = point.block_bytes;
  answer["depth"] = point.depth;
  answer["n_reads"] = point.n_reads;
  answer["seconds"] = point.seconds;
  return answer;
}

py::dict RunProbe(const std::string& path, const ProbeOptions& options) {
  auto result = [&] {
    const py::gil_scoped_release release;
    return Probe(path, options);
  }();
  ThrowIfError(result.status());
  py::list points;
  for (const ProbePoint& point : result.value().points) points.append(PointOf(point));
  py::dict answer;
  answer["backend"] = result.value().backend;
  answer["direct"] = result.value().direct;
  answer["notes"] = Readable(result.value().notes);
  answer["points"] = points;
  answer["pick"] = PointOf(result.value().pick);
  return answer;
}

}  // namespace

void RegisterStorage(py::module_& module) {
  py::class_<FaultPlan>(module, "FaultPlan")
      .def(
          py::init([](int64_t fail_operation, int range_file, uint64_t range_offset,
                      uint64_t range_bytes, int range_times, int error_number, uint64_t short_bytes,
                      int interruptions, int delay_us, int64_t truncate_bytes, int enter_error,
                      int enter_failures, bool refuse_direct, bool refuse_uring) {
            FaultPlan plan;
            plan.fail_operation = fail_operation;
            plan.range_file = range_file;
            plan.range_offset = range_offset;
            plan.range_bytes = range_bytes;
            plan.range_times = range_times;
            plan.error_number = error_number;
            plan.short_bytes = short_bytes;
            plan.interruptions = interruptions;
            plan.delay_us = delay_us;
            plan.truncate_bytes = truncate_bytes;
            plan.enter_error = enter_error;
            plan.enter_failures = enter_failures;
            plan.refuse_direct = refuse_direct;
            plan.refuse_uring = refuse_uring;
            return plan;
          }),
          py::kw_only(), py::arg("fail_operation") = -1, py::arg("range_file") = -1,
          py::arg("range_offset") = 0, py::arg("range_bytes") = 0, py::arg("range_times") = -1,
          py::arg("error_number") = 5, py::arg("short_bytes") = 0, py::arg("interruptions") = 0,
          py::arg("delay_us") = 0, py::arg("truncate_bytes") = -1, py::arg("enter_error") = 0,
          py::arg("enter_failures") = 0, py::arg("refuse_direct") = false,
          py::arg("refuse_uring") = false);

  py::class_<BufferedReader>(module, "Reader")
      .def(py::init([](const std::vector<Path>& paths, const std::string& backend, bool direct,
                       int depth, int background_depth, uint64_t piece_bytes, uint64_t proof_offset,
                       const FaultPlan& faults) {
             ReaderOptions options;
             options.backend = backend;
             options.direct = direct;
             options.depth = depth;
             options.background_depth = background_depth;
             options.piece_bytes = piece_bytes;
             options.proof_offset = proof_offset;
             options.faults = faults;
             std::vector<std::string> names;
             for (const Path& path : paths) names.push_back(path.bytes);
             return std::make_unique<BufferedReader>(names, options);
           }),
           py::arg("paths"), py::kw_only(), py::arg("backend") = "auto", py::arg("direct") = true,
           py::arg("depth") = 0, py::arg("background_depth") = 2,
           py::arg("piece_bytes") = uint64_t{1} << 20, py::arg("proof_offset") = 0,
           py::arg("faults") = FaultPlan())
      .def("submit", &BufferedReader::Submit, py::arg("spans"), py::kw_only(),
           py::arg("background") = false)
      .def("drain", &BufferedReader::Drain)
      .def("cancel_background", &BufferedReader::CancelBackground)
      .def(
          "promote",
          [](const BufferedReader& self, uint64_t tag) {
            Reader& reader = self.reader();
            const py::gil_scoped_release release;
            reader.Promote(tag);
          },
          py::arg("tag"))
      .def("check_unchanged",
           [](const BufferedReader& self) { ThrowIfError(self.reader().CheckUnchanged()); })
      .def(
          "set_faults",
          [](const BufferedReader& self, const FaultPlan& plan) { self.reader().SetFaults(plan); },
          py::arg("faults"))
      .def("counts", [](const BufferedReader& self) { return CountsOf(self.reader()); })
      .def_property_readonly("backend",
                             [](const BufferedReader& self) { return self.reader().backend(); })
      .def_property_readonly("direct",
                             [](const BufferedReader& self) { return self.reader().direct(); })
      .def_property_readonly("depth",
                             [](const BufferedReader& self) { return self.reader().depth(); })
      .def_property_readonly(
          "notes", [](const BufferedReader& self) { return Readable(self.reader().notes()); })
      .def("close", &BufferedReader::Close);

  const ProbeOptions standard;
  module.def(
      "probe",
      [](const Path& path, const std::vector<std::pair<uint64_t, uint64_t>>& ranges,
         const std::vector<uint64_t>& block_bytes, const std::vector<int>& depths, double seconds,
         uint64_t wanted_bytes, const std::string& backend, bool direct, const FaultPlan& faults) {
        ProbeOptions options;
        for (const auto& [offset, n_bytes] : ranges) options.ranges.push_back({offset, n_bytes});
        options.block_bytes = block_bytes;
        options.depths = depths;
        options.seconds = seconds;
        options.wanted_bytes = wanted_bytes;
        options.backend = backend;
        options.direct = direct;
        options.faults = faults;
        return RunProbe(path.bytes, options);
      },
      py::arg("path"), py::kw_only(),
      py::arg("ranges") = std::vector<std::pair<uint64_t, uint64_t>>(),
      py::arg("block_bytes") = standard.block_bytes, py::arg("depths") = standard.depths,
      py::arg("seconds") = standard.seconds, py::arg("wanted_bytes") = standard.wanted_bytes,
      py::arg("backend") = standard.backend, py::arg("direct") = standard.direct,
      py::arg("faults") = FaultPlan());
}

}  // namespace remoe::bindings

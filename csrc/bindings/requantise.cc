#include "device/requantise.h"

#include "bindings/bindings.h"
#include "gguf/types.h"

namespace py = pybind11;

namespace remoe::bindings {

void RegisterRequantise(py::module_& module) {
  module.def(
      "coarse_type_for",
      [](const std::string& name, int64_t n_per_row) {
        const Result<uint32_t> type = CoarseTypeFor(name, n_per_row);
        ThrowIfError(type.status());
        return type.value();
      },
      py::arg("name"), py::arg("n_per_row"));
  module.def(
      "requantise",
      [](uint32_t from, const py::array_t<uint8_t, py::array::c_style>& bytes, uint32_t to,
         int64_t n_rows, int64_t n_per_row) {
        const TypeTraits* traits = FindType(from);
        if (traits == nullptr || n_per_row < 1 || n_rows < 1 ||
            n_per_row % traits->block_weights != 0 ||
            static_cast<int64_t>(bytes.size()) !=
                n_rows * (n_per_row / traits->block_weights) * traits->block_bytes) {
          ThrowIfError(Status(Code::kInvalidArgument, "that is not so many rows of that type"));
        }
        std::vector<uint8_t> out;
        Status status;
        {
          const py::gil_scoped_release release;
          status = Requantise(from, bytes.data(), to, n_rows, n_per_row, &out);
        }
        ThrowIfError(status);
        return py::array_t<uint8_t>(static_cast<py::ssize_t>(out.size()), out.data());
      },
      py::arg("source_type"), py::arg("rows"), py::arg("target_type"), py::arg("n_rows"),
      py::arg("n_per_row"));
}

}  // namespace remoe::bindings

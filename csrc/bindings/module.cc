#include "bindings/bindings.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace remoe::bindings {

py::str Readable(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

std::vector<py::str> Readable(const std::vector<std::string>& texts) {
  std::vector<py::str> readable;
  for (const std::string& text : texts) readable.push_back(Readable(text));
  return readable;
}

void ThrowIfError(const Status& status) {
  const char* name = "RemoeError";
  switch (status.code()) {
    case Code::kOk:
      return;
    case Code::kInvalidArgument:
      name = "InputError";
      break;
    case Code::kCorrupt:
      name = "ModelError";
      break;
    case Code::kIo:
      name = "ReadError";
      break;
    case Code::kNotSupported:
    case Code::kRefused:
      name = "UnsupportedError";
      break;
    case Code::kBudgetTooSmall:
      name = "BudgetError";
      break;
    case Code::kOutOfMemory:
    case Code::kCancelled:
      break;
  }
  const py::object type = py::module_::import("remoe_edge.errors").attr(name);
  const py::str message = Readable(status.message());
  PyErr_SetObject(type.ptr(), message.ptr());
  throw py::error_already_set();
}

}  // namespace remoe::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "The native core: GGUF checks, storage, expert cache and the streaming device.";
  remoe::bindings::RegisterGguf(module);
  remoe::bindings::RegisterStorage(module);
  remoe::bindings::RegisterCache(module);
  remoe::bindings::RegisterProfile(module);
  remoe::bindings::RegisterReplay(module);
  remoe::bindings::RegisterTrace(module);
  remoe::bindings::RegisterEngine(module);
  remoe::bindings::RegisterRemote(module);
  remoe::bindings::RegisterRequantise(module);
}

#include "bindings/bindings.h"

namespace py = pybind11;

namespace remoe::bindings {

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
  // Paths are bytes: one that is no UTF-8 must not replace the error by another.
  const std::string& text = status.message();
  const py::object message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
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
}

// The parts of the extension module: one register function per concept, in the file of that name.
//
// Only this layer sees pybind11. It turns a Status into a Python exception (ThrowIfError), and
// releases the GIL around whatever reads or computes. Objects of the core are owned by the Python
// objects that wrap them.
//
// Register functions run once, at import, in the importing thread. Each class says for itself which
// threads may use it.
#ifndef REMOE_BINDINGS_BINDINGS_H_
#define REMOE_BINDINGS_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"
#include "cache/profile.h"

namespace remoe::bindings {

void RegisterGguf(pybind11::module_& module);
void RegisterStorage(pybind11::module_& module);
void RegisterCache(pybind11::module_& module);
void RegisterProfile(pybind11::module_& module);
void RegisterReplay(pybind11::module_& module);
void RegisterTrace(pybind11::module_& module);
void RegisterEngine(pybind11::module_& module);
void RegisterRemote(pybind11::module_& module);
void RegisterRequantise(pybind11::module_& module);

// Words for a person, which may hold a path that is no UTF-8.
pybind11::str Readable(const std::string& text);
std::vector<pybind11::str> Readable(const std::vector<std::string>& texts);

// A path as Python gives it (str, bytes, os.PathLike), in the bytes that the kernel is given: what is no
// UTF-8 goes through Python as surrogates.
struct Path {
  std::string bytes;
};

// Throws the remoe_edge.errors exception that fits the code. Returns when the status is ok.
// REQUIRES: the GIL is held.
void ThrowIfError(const Status& status);

// What a cache counted, by name.
pybind11::dict CountsDict(const CacheCounts& counts);

// The profile in these bytes, null without them; throws where they are damaged.
std::shared_ptr<const Profile> ToProfile(const std::optional<pybind11::bytes>& bytes);

// What Policy::Expect() takes: a number for each of `total` experts, or none.
using Bonus =
    std::optional<pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>>;
// Throws where it is of another size, or not finite. RETURNS: its numbers, or null.
const float* CheckedBonus(const Bonus& bonus, int total);

}  // namespace remoe::bindings

namespace pybind11::detail {

template <>
struct type_caster<remoe::bindings::Path> {
  PYBIND11_TYPE_CASTER(remoe::bindings::Path, const_name("str | bytes | os.PathLike"));

  bool load(handle source, bool) {
    PyObject* encoded = nullptr;
    if (!source || !PyUnicode_FSConverter(source.ptr(), &encoded)) {
      PyErr_Clear();
      return false;
    }
    value.bytes.assign(PyBytes_AS_STRING(encoded), static_cast<size_t>(PyBytes_GET_SIZE(encoded)));
    Py_DECREF(encoded);
    return true;
  }

  static handle cast(const remoe::bindings::Path& path, return_value_policy, handle) {
    return PyUnicode_DecodeFSDefaultAndSize(path.bytes.data(),
                                            static_cast<Py_ssize_t>(path.bytes.size()));
  }
};

}  // namespace pybind11::detail

#endif  // REMOE_BINDINGS_BINDINGS_H_

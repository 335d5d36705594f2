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

#endif  // REMOE_BINDINGS_BINDINGS_H_

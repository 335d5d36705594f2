// Arrays and results between C++ and Python, for the files of this folder.
//
// Array is what an argument is taken as: contiguous, converted where it has to be. The arrays that
// Moved() makes own their memory. Failures are thrown as Python's.
// REQUIRES: the GIL is held, which makes it safe in any thread.
#ifndef REMOE_BINDINGS_ARRAYS_H_
#define REMOE_BINDINGS_ARRAYS_H_

#include <pybind11/numpy.h>

#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "cache/policy.h"

namespace remoe::bindings {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

// Hands a vector to numpy without a copy.
template <typename T>
pybind11::array_t<T> Moved(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  const pybind11::capsule free(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return pybind11::array_t<T>(owner->size(), owner->data(), free);
}

// The value, or the status thrown as its Python exception.
template <typename T>
T Unwrap(Result<T> result) {
  ThrowIfError(result.status());
  return std::move(result.value());
}

// Throws InputError where no cache is of that shape.
inline Geometry MakeGeometry(int n_layers, int n_experts, int n_slots) {
  Geometry geometry;
  geometry.n_layers = n_layers;
  geometry.n_experts = n_experts;
  geometry.n_slots = n_slots;
  ThrowIfError(CheckGeometry(geometry));
  return geometry;
}

}  // namespace remoe::bindings

#endif  // REMOE_BINDINGS_ARRAYS_H_

#include "bindings/bindings.h"

namespace remoe::bindings {

void RegisterCache(pybind11::module_& module) {}

}  // namespace remoe::bindings

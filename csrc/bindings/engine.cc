#include "bindings/bindings.h"

namespace remoe::bindings {

void RegisterEngine(pybind11::module_& module) {}

}  // namespace remoe::bindings

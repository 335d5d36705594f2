#include "bindings/bindings.h"

namespace remoe::bindings {

void RegisterGguf(pybind11::module_& module) {}

}  // namespace remoe::bindings

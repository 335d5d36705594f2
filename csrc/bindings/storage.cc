#include "bindings/bindings.h"

namespace remoe::bindings {

void RegisterStorage(pybind11::module_& module) {}

}  // namespace remoe::bindings

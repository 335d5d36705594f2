#include "device/graph/ggml_abi.h"

#include <cstring>

#include "base/format.h"

namespace remoe::abi {

namespace {

// What ggml_tensor_overhead() adds to a tensor: an object header of offset, size, next, type and
// padding.
constexpr size_t kObjectBytes = 32;

}  // namespace

Status CheckAbi() {
  if (std::strcmp(ggml_version(), kGgmlVersion) != 0) {
    return Status(
        Code::kNotSupported,
        Format("this build of remoe-edge needs ggml %s (llama-cpp-python %s); the process "
               "has ggml %s: pip install llama-cpp-python==%s",
               kGgmlVersion, kLlamaCppPythonVersion, ggml_version(), kLlamaCppPythonVersion));
  }
  const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (cpu == nullptr) return Status(Code::kNotSupported, "this llama.cpp has no CPU backend");
  const int api_version = ggml_backend_dev_backend_reg(cpu)->api_version;
  if (api_version != kBackendApiVersion) {
    return Status(Code::kNotSupported, Format("ggml's backend API is version %d, not %d",
                                              api_version, kBackendApiVersion));
  }
  if (ggml_tensor_overhead() != sizeof(ggml_tensor) + kObjectBytes) {
    return Status(
        Code::kNotSupported,
        Format("ggml's tensors take %zu bytes here and %zu in the headers that remoe-edge "
               "was built with: reinstall it against this llama-cpp-python",
               ggml_tensor_overhead() - kObjectBytes, sizeof(ggml_tensor)));
  }
  return Status::Ok();
}

}  // namespace remoe::abi

#include "device/graph/ggml_abi.h"

#include <cstring>

#include "base/format.h"
#include "device/graph/cpu_backend.h"

namespace remoe::abi {

namespace {

// What ggml_tensor_overhead() adds to a tensor: an object header of offset, size, next, type and
// padding.
constexpr size_t kObjectBytes = 32;

// Numbers that headers give to names, and that libraries of the same version have given to others.
// clang-format off
constexpr struct { ggml_op op; const char* name; } kOps[] = {
    {GGML_OP_NONE, "NONE"},           {GGML_OP_MUL_MAT, "MUL_MAT"},     {GGML_OP_MUL_MAT_ID, "MUL_MAT_ID"},
    {GGML_OP_VIEW, "VIEW"},           {GGML_OP_RESHAPE, "RESHAPE"},     {GGML_OP_PERMUTE, "PERMUTE"},
    {GGML_OP_TRANSPOSE, "TRANSPOSE"}, {GGML_OP_ADD_ID, "ADD_ID"},       {GGML_OP_GLU, "GLU"},
    {GGML_OP_UNARY, "UNARY"},         {GGML_OP_SQR, "SQR"},             {GGML_OP_SQRT, "SQRT"},
    {GGML_OP_MUL, "MUL"},             {GGML_OP_ADD, "ADD"},             {GGML_OP_SCALE, "SCALE"},
    {GGML_OP_CLAMP, "CLAMP"},         {GGML_OP_ARGSORT, "ARGSORT"},     {GGML_OP_SOFT_MAX, "SOFT_MAX"},
    {GGML_OP_GET_ROWS, "GET_ROWS"},   {GGML_OP_SET_ROWS, "SET_ROWS"},   {GGML_OP_CONT, "CONT"},
    {GGML_OP_RMS_NORM, "RMS_NORM"},
};
constexpr struct { ggml_type type; const char* name; } kTypes[] = {
    {GGML_TYPE_F32, "f32"},   {GGML_TYPE_F16, "f16"},   {GGML_TYPE_BF16, "bf16"},
    {GGML_TYPE_Q8_0, "q8_0"}, {GGML_TYPE_Q4_K, "q4_K"}, {GGML_TYPE_Q8_K, "q8_K"}, {GGML_TYPE_I32, "i32"},
};
// clang-format on

// What the libraries call differently; empty where nothing is.
std::string Renumbered() {
  for (const auto& each : kOps) {
    if (std::strcmp(ggml_op_name(each.op), each.name) != 0) return each.name;
  }
  for (const auto& each : kTypes) {
    if (std::strcmp(ggml_type_name(each.type), each.name) != 0) return each.name;
  }
  return "";
}

std::string Build(const char* version, const char* commit) {
  return commit != nullptr ? Format("%s (commit %s)", version, commit) : version;
}

}  // namespace

const Wanted kPinned = {"0.25.3", nullptr, "pip install llama-cpp-python==0.3.36"};

Status CheckAbi(const Wanted& wanted) {
  const auto refused = [&wanted](const std::string& why) {
    return Status(Code::kNotSupported, why + ": " + wanted.remedy);
  };
  const bool same_commit =
      wanted.commit == nullptr || std::strcmp(ggml_commit(), wanted.commit) == 0;
  if (std::strcmp(ggml_version(), wanted.version) != 0 || !same_commit) {
    const bool name_commit = wanted.commit != nullptr;
    return refused(Format("this build of remoe-edge needs ggml %s; the process has ggml %s",
                          Build(wanted.version, wanted.commit).c_str(),
                          Build(ggml_version(), name_commit ? ggml_commit() : nullptr).c_str()));
  }
  const ggml_backend_reg_t cpu = cpu::Registry();
  if (cpu == nullptr) return Status(Code::kNotSupported, "this llama.cpp has no CPU backend");
  if (cpu->api_version != kBackendApiVersion) {
    return refused(
        Format("remoe-edge was built for version %d of ggml's backend API; the process "
               "has version %d",
               kBackendApiVersion, cpu->api_version));
  }
  if (ggml_tensor_overhead() != sizeof(ggml_tensor) + kObjectBytes) {
    return refused(
        Format("ggml's tensors take %zu bytes here and %zu in the headers that "
               "remoe-edge was built with",
               ggml_tensor_overhead() - kObjectBytes, sizeof(ggml_tensor)));
  }
  const std::string renumbered = Renumbered();
  if (!renumbered.empty()) {
    return refused(
        Format("ggml numbers %s otherwise than the headers that remoe-edge was built with",
               renumbered.c_str()));
  }
  if (!cpu::Complete()) return refused("ggml's CPU backend lacks functions that remoe-edge calls");
  return Status::Ok();
}

}  // namespace remoe::abi

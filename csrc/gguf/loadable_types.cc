// Tensor formats that llama.cpp loads and then cannot compute with: it finds out in the graph, and
// aborts.
#include <algorithm>

#include "base/format.h"
#include "gguf/loadable.h"
#include "gguf/types.h"

namespace remoe {
namespace {

enum GgmlType : uint32_t { kF32 = 0, kQ8_1 = 9, kQ8_K = 15, kI8 = 24, kF64 = 28 };

bool EndsWith(const std::string& text, const char* end) {
  const std::string tail = end;
  return text.size() >= tail.size() &&
         text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

bool Contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// Tables of ids, not weights.
bool IsTable(const std::string& name) {
  return Contains(name, "tid2eid") || Contains(name, "d2t") || Contains(name, "t2d");
}

// Added to or multiplied with activations, element by element, or part of a recurrence: those
// operations take F32 only.
bool IsElementwise(const Tensor& tensor) {
  const std::string& name = tensor.name;
  if (tensor.n_dims <= 1) return !EndsWith(name, "_shexp.weight");
  return EndsWith(name, ".bias") || EndsWith(name, "norm.weight") || EndsWith(name, ".scale") ||
         Contains(name, ".ssm_conv1d.") || EndsWith(name, ".ssm_a") || EndsWith(name, ".ssm_d") ||
         Contains(name, ".shortconv.conv.");
}

}  // namespace

Status CheckTensorTypes(const Metadata& keys) {
  for (const Tensor& tensor : keys.file().tensors()) {
    if (IsTable(tensor.name)) continue;
    const bool is_number = tensor.type >= kI8 && tensor.type <= kF64;
    const bool is_activation = tensor.type == kQ8_1 || tensor.type == kQ8_K;
    const bool is_wrong =
        is_number || is_activation || (IsElementwise(tensor) && tensor.type != kF32);
    if (is_wrong) {
      return Status(
          Code::kNotSupported,
          Format("%s: tensor '%s' is %s, which llama.cpp cannot compute with there",
                 keys.file().paths()[0].c_str(), tensor.name.c_str(), FindType(tensor.type)->name));
    }
  }
  return Status::Ok();
}

}  // namespace remoe

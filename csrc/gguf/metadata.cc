#include "gguf/metadata.h"

#include <algorithm>
#include <cinttypes>

#include "base/format.h"

namespace remoe {

bool Metadata::IsOneOf(const std::vector<const char*>& architectures) const {
  return std::any_of(architectures.begin(), architectures.end(),
                     [this](const char* name) { return architecture_ == name; });
}

Result<std::vector<uint64_t>> Metadata::PerLayer(const std::string& name, uint64_t n_layers,
                                                 uint64_t absent) const {
  const KeyPlace* place = file_.FindKey(Full(name));
  if (place == nullptr) return std::vector<uint64_t>(n_layers, absent);
  if (!place->is_array) {
    const auto value = Unsigned(name);
    if (!value) return Wrong(name, "is not a number of at least 0");
    return std::vector<uint64_t>(n_layers, *value);
  }
  if (place->n_elements != n_layers) {
    return Wrong(name, Format("has %" PRIu64 " elements and the model has %" PRIu64 " layers",
                              place->n_elements, n_layers));
  }
  auto values = file_.UnsignedArray(Full(name));
  if (!values) return Wrong(name, "is not an array of numbers of at least 0");
  return std::move(*values);
}

Status Metadata::Wrong(const std::string& name, const std::string& problem) const {
  return WrongKey(Full(name), problem);
}

Status Metadata::WrongKey(const std::string& full_name, const std::string& problem) const {
  return Status(Code::kCorrupt, file_.paths()[0] + ": key '" + full_name + "' " + problem);
}

}  // namespace remoe

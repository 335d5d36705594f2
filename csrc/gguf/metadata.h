// Metadata: a model's keys as llama.cpp reads them: one number for all layers or one for each,
// under the name of the architecture. Every lookup that fails says which key and why.
//
// Names are given without the architecture: "expert_count" for the key "qwen3moe.expert_count".
//
// Borrows the ModelFile, which outlives it. Immutable; safe to share between threads.
#ifndef REMOE_GGUF_METADATA_H_
#define REMOE_GGUF_METADATA_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "gguf/model_file.h"

namespace remoe {

class Metadata {
 public:
  explicit Metadata(const ModelFile& file) : file_(file), architecture_(file.architecture()) {}

  const ModelFile& file() const { return file_; }
  const std::string& architecture() const { return architecture_; }
  bool IsOneOf(const std::vector<const char*>& architectures) const;

  // `name` without the architecture: "expert_count".
  std::string Full(const std::string& name) const { return architecture_ + "." + name; }
  bool Has(const std::string& name) const { return file_.FindKey(Full(name)) != nullptr; }
  std::optional<uint64_t> Unsigned(const std::string& name) const {
    return file_.Unsigned(Full(name));
  }
  uint64_t UnsignedOr(const std::string& name, uint64_t absent) const {
    return Unsigned(name).value_or(absent);
  }
  // The value of each of `n_layers` layers. kCorrupt for an array of another length, or a value
  // that is no number >= 0.
  Result<std::vector<uint64_t>> PerLayer(const std::string& name, uint64_t n_layers,
                                         uint64_t absent) const;

  // kCorrupt: "PATH: key 'qwen3moe.expert_count' " + problem.
  Status Wrong(const std::string& name, const std::string& problem) const;
  Status WrongKey(const std::string& full_name, const std::string& problem) const;

 private:
  const ModelFile& file_;
  std::string architecture_;
};

}  // namespace remoe

#endif  // REMOE_GGUF_METADATA_H_

// Finding the model behind a tensor that llama.cpp is about to fill: among the files that the process
// has mapped, the GGUF that holds a tensor of that name, type and shape.
//
// Only headers are read, from the files. A model of several files is found by its first; the others
// follow by name, or are other mapped files that say so.
//
// A plain value; the thread that loads.
#ifndef REMOE_PLUGIN_MAPPED_MODEL_H_
#define REMOE_PLUGIN_MAPPED_MODEL_H_

#include <functional>
#include <vector>

#include "base/status.h"
#include "device/graph/weight_buffer.h"
#include "gguf/model_file.h"
#include "plugin/process_maps.h"

namespace remoe::plugin {

struct MappedModel {
  ModelFile file;
  std::vector<FileMapping> shards;  // by file; one that is not mapped has no begin

  // `taken` says which mappings belong to a model that was loaded before: they are looked at last.
  // kNotSupported where no mapped file will do, which is so where llama.cpp does not map its models.
  static Result<MappedModel> Find(const ggml_tensor& tensor,
                                  const std::function<bool(uintptr_t begin)>& taken);

  // Where that tensor of the file lies in memory; 0 where its file is not mapped.
  uintptr_t AddressOf(const Tensor& tensor) const;
};

// Whether the file's tensor is the one that llama.cpp has.
bool IsSame(const Tensor& of_file, const ggml_tensor& tensor);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_MAPPED_MODEL_H_

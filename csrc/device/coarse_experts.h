// CoarseExperts: a model's experts in a coarser form, from a second file (`remoe-edge convert coarse`).
//
// The file holds the same tensors as the model's experts, in types that take fewer bytes. Open() checks
// that they are as many, of the same shapes, no larger, and of types that the CPU multiplies by;
// whether they were made from this model is known to who opens both. Attach() has the store's slots
// seen as these tensors.
//
// Immutable but for Attach(), which no step may run beside; otherwise any thread. Owned by the model.
#ifndef REMOE_DEVICE_COARSE_EXPERTS_H_
#define REMOE_DEVICE_COARSE_EXPERTS_H_

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/graph/weight_buffer.h"
#include "gguf/model_file.h"
#include "runtime/expert_store.h"
#include "runtime/slot_layout.h"

namespace remoe {

class CoarseExperts {
 public:
  // `layers`: those of the model whose experts are streamed.
  static Result<std::unique_ptr<CoarseExperts>> Open(const std::string& path,
                                                     const ModelFile& model,
                                                     const std::vector<ExpertLayer>& layers);

  const ModelFile& file() const { return file_; }
  const SlotLayout& layout() const { return layout_; }
  // `first_shard`: where this file's shards begin among the reader's files.
  CoarseParts Parts(Reader* reader, int first_shard) const;
  void Attach(const ExpertStore& store, const SlotLayout& layout);
  const ggml_tensor& view(const TensorOrigin& origin) const {
    return views_[origin.layer][origin.matrix];
  }

 private:
  CoarseExperts(ModelFile file, std::vector<ExpertLayer> layers, SlotLayout layout);

  const ModelFile file_;
  const std::vector<ExpertLayer> layers_;
  const SlotLayout layout_;
  std::vector<std::vector<ggml_tensor>> views_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COARSE_EXPERTS_H_

// ExpertWeights: how a model's streamed weights look to ggml: which tensor is which matrix, how it
// is rearranged on arrival, and, once there is a slab, the slab seen as that tensor.
//
// Immutable but for Attach(), which no step may run beside; otherwise any thread. Tensors of the
// model point at its origins, so it outlives them.
#ifndef REMOE_DEVICE_EXPERT_WEIGHTS_H_
#define REMOE_DEVICE_EXPERT_WEIGHTS_H_

#include <string>
#include <vector>

#include "base/status.h"
#include "device/compute/device_slab.h"
#include "device/compute/repack.h"
#include "device/graph/weight_buffer.h"
#include "gguf/model_file.h"
#include "runtime/expert_store.h"

namespace remoe {

class ExpertWeights {
 public:
  // `repack`: rearrange weights as stock llama.cpp does by default. All pointers outlive this.
  ExpertWeights(StreamedModel* model, const ModelFile* file, const std::vector<ExpertLayer>* layers,
                bool repack);

  bool repacked() const { return repacked_; }
  // Which matrices are rewritten on arrival, as SlotLayout takes it.
  std::vector<std::vector<bool>> transformed() const;
  // What rewrites them; empty where none is.
  Transform transform() const;
  // The origin of the tensor of that name; null for any other.
  TensorOrigin* Find(const std::string& tensor_name);

  // kNotSupported where that GPU cannot multiply by one of the matrices as they lie in the slab.
  Status CheckOn(ggml_backend_dev_t gpu, const DeviceSlab& slab, int n_slots,
                 const SlotLayout& layout, int n_used) const;
  // From now on the store's slab stands in for the weights: expert index = slot. `device`: where the
  // slots are; null for the store's own memory.
  void Attach(const ExpertStore& store, const SlotLayout& layout, const DeviceSlab* device);
  const ggml_tensor& view(const TensorOrigin& origin) const {
    return views_[origin.layer][origin.matrix];
  }

 private:
  // Without an address.
  ggml_tensor View(int layer, int matrix, int n_slots, const SlotLayout& layout) const;

  const ModelFile* file_;
  const std::vector<ExpertLayer>* layers_;
  std::vector<std::vector<Repack>> repacks_;  // inactive where nothing is rearranged
  std::vector<std::vector<TensorOrigin>> origins_;
  std::vector<std::vector<ggml_tensor>> views_;
  bool repacked_ = false;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_EXPERT_WEIGHTS_H_

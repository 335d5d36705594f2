#include "device/expert_weights.h"

#include <cstring>

namespace remoe {

ExpertWeights::ExpertWeights(StreamedModel* model, const ModelFile* file,
                             const std::vector<ExpertLayer>* layers, bool repack)
    : file_(file), layers_(layers) {
  for (size_t l = 0; l < layers_->size(); l++) {
    const ExpertLayer& layer = (*layers_)[l];
    std::vector<Repack> repacks(layer.matrices.size());
    std::vector<TensorOrigin> origins;
    for (size_t m = 0; m < layer.matrices.size(); m++) {
      const Tensor& tensor = file_->tensors()[layer.matrices[m].tensor];
      if (repack) {
        repacks[m] = Repack::For(static_cast<ggml_type>(tensor.type), tensor.ne[0], tensor.ne[1],
                                 layer.n_experts);
      }
      repacked_ |= repacks[m].active();
      origins.push_back({model, static_cast<int>(l), static_cast<int>(m)});
    }
    repacks_.push_back(std::move(repacks));
    origins_.push_back(std::move(origins));
  }
}

std::vector<std::vector<bool>> ExpertWeights::transformed() const {
  std::vector<std::vector<bool>> transformed;
  for (const std::vector<Repack>& layer : repacks_) {
    transformed.emplace_back();
    for (const Repack& repack : layer) transformed.back().push_back(repack.active());
  }
  return transformed;
}

Transform ExpertWeights::transform() const {
  if (!repacked_) return Transform();
  return [this](int layer, int matrix, const uint8_t* bytes, uint8_t* dest) {
    const Repack& repack = repacks_[layer][matrix];
    if (repack.active()) {
      repack.Apply(bytes, dest);
    } else {
      std::memcpy(dest, bytes, (*layers_)[layer].matrices[matrix].expert_bytes);
    }
  };
}

TensorOrigin* ExpertWeights::Find(const std::string& tensor_name) {
  for (size_t l = 0; l < layers_->size(); l++) {
    const ExpertLayer& layer = (*layers_)[l];
    for (size_t m = 0; m < layer.matrices.size(); m++) {
      if (file_->tensors()[layer.matrices[m].tensor].name == tensor_name) return &origins_[l][m];
    }
  }
  return nullptr;
}

void ExpertWeights::Attach(const ExpertStore& store, const SlotLayout& layout) {
  views_.clear();
  for (size_t l = 0; l < layers_->size(); l++) {
    std::vector<ggml_tensor> views;
    for (size_t m = 0; m < (*layers_)[l].matrices.size(); m++) {
      const Tensor& tensor = file_->tensors()[(*layers_)[l].matrices[m].tensor];
      ggml_tensor view{};
      view.type = static_cast<ggml_type>(tensor.type);
      view.ne[0] = static_cast<int64_t>(tensor.ne[0]);
      view.ne[1] = static_cast<int64_t>(tensor.ne[1]);
      view.ne[2] = store.most_slots();
      view.ne[3] = 1;
      view.nb[0] = ggml_type_size(view.type);
      view.nb[1] = ggml_row_size(view.type, view.ne[0]);
      view.nb[2] = layout.slot_bytes();
      view.nb[3] = view.nb[2] * view.ne[2];
      view.data = store.matrix(0, static_cast<int>(l), static_cast<int>(m));
      ggml_set_name(&view, tensor.name.c_str());
      if (repacks_[l][m].active()) repacks_[l][m].Tag(&view);
      views.push_back(view);
    }
    views_.push_back(std::move(views));
  }
}

}  // namespace remoe

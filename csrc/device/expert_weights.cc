#include "device/expert_weights.h"

#include <cstring>

#include "base/format.h"
#include "device/graph/plain_tensor.h"

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

ggml_tensor ExpertWeights::View(int l, int m, int n_slots, const SlotLayout& layout) const {
  return SlotView(file_->tensors()[(*layers_)[l].matrices[m].tensor], n_slots, layout.slot_bytes());
}

Status ExpertWeights::CheckOn(ggml_backend_dev_t gpu, const DeviceSlab& slab, int n_slots,
                              const SlotLayout& layout, int n_used) const {
  for (size_t l = 0; l < layers_->size(); l++) {
    for (size_t m = 0; m < (*layers_)[l].matrices.size(); m++) {
      ggml_tensor weights = View(static_cast<int>(l), static_cast<int>(m), n_slots, layout);
      weights.buffer = slab.buffer();
      weights.data = slab.at(layout.at(static_cast<int>(l), static_cast<int>(m)).offset);
      constexpr int64_t kTokens = 64;
      ggml_tensor input = PlainTensor(GGML_TYPE_F32, weights.ne[0], n_used, kTokens);
      ggml_tensor ids = PlainTensor(GGML_TYPE_I32, n_used, kTokens, 1);
      ggml_tensor product = PlainTensor(GGML_TYPE_F32, weights.ne[1], n_used, kTokens);
      product.op = GGML_OP_MUL_MAT_ID;
      product.src[0] = &weights;
      product.src[1] = &input;
      product.src[2] = &ids;
      if (ggml_backend_dev_supports_op(gpu, &product)) continue;
      return Status(Code::kNotSupported,
                    Format("%s cannot multiply by %s (%s) where it lies: use --experts-on cpu",
                           ggml_backend_dev_name(gpu), weights.name, ggml_type_name(weights.type)));
    }
  }
  return Status::Ok();
}

void ExpertWeights::Attach(const ExpertStore& store, const SlotLayout& layout,
                           const DeviceSlab* device) {
  views_.clear();
  for (int l = 0; l < static_cast<int>(layers_->size()); l++) {
    std::vector<ggml_tensor> views;
    for (int m = 0; m < static_cast<int>((*layers_)[l].matrices.size()); m++) {
      ggml_tensor view = View(l, m, store.most_slots(), layout);
      if (device != nullptr) {
        view.buffer = device->buffer();
        view.data = device->at(layout.at(l, m).offset);
      } else {
        view.data = store.matrix(0, l, m);
      }
      if (repacks_[l][m].active()) repacks_[l][m].Tag(&view);
      views.push_back(view);
    }
    views_.push_back(std::move(views));
  }
}

}  // namespace remoe

#include "device/coarse_experts.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "device/graph/cpu_backend.h"
#include "device/graph/plain_tensor.h"

namespace remoe {

namespace {

// "" where the coarse matrix can stand in for the model's.
std::string WhyNot(const Tensor& coarse, const Tensor& own) {
  if (std::memcmp(coarse.ne, own.ne, sizeof(own.ne)) != 0) return "another shape";
  if (coarse.n_bytes > own.n_bytes) return "more bytes than the model's own";
  const auto* traits = cpu::TypeTraits(static_cast<ggml_type>(coarse.type));
  if (traits == nullptr || traits->vec_dot == nullptr) return "a type that cannot be multiplied by";
  return "";
}

}  // namespace

Result<std::unique_ptr<CoarseExperts>> CoarseExperts::Open(const std::string& path,
                                                           const ModelFile& model,
                                                           const std::vector<ExpertLayer>& layers) {
  Result<ModelFile> file = ModelFile::Open(path);
  if (!file.ok()) return file.status();
  Result<std::vector<ExpertLayer>> found = file.value().ExpertLayers();
  if (!found.ok()) return found.status();
  const auto refuse = [&path](const std::string& why) {
    return Status(Code::kInvalidArgument, path + ": " + why);
  };
  std::vector<ExpertLayer> ours;
  std::vector<std::vector<bool>> transformed;
  for (const ExpertLayer& layer : layers) {
    const auto same =
        std::find_if(found.value().begin(), found.value().end(),
                     [&layer](const ExpertLayer& each) { return each.block == layer.block; });
    if (same == found.value().end()) {
      return refuse(Format("it has no experts of layer %d", layer.block));
    }
    if (same->matrices.size() != layer.matrices.size()) {
      return refuse(Format("layer %d has other matrices than the model's", layer.block));
    }
    for (size_t m = 0; m < layer.matrices.size(); m++) {
      const Tensor& own = model.tensors()[layer.matrices[m].tensor];
      const Tensor& coarse = file.value().tensors()[same->matrices[m].tensor];
      const std::string why =
          coarse.name == own.name ? WhyNot(coarse, own) : std::string("another name");
      if (!why.empty()) return refuse(Format("%s has %s", coarse.name.c_str(), why.c_str()));
    }
    transformed.emplace_back(layer.matrices.size());
    ours.push_back(*same);
  }
  SlotLayout layout(ours, transformed);
  return std::unique_ptr<CoarseExperts>(
      new CoarseExperts(std::move(file.value()), std::move(ours), std::move(layout)));
}

CoarseExperts::CoarseExperts(ModelFile file, std::vector<ExpertLayer> layers, SlotLayout layout)
    : file_(std::move(file)), layers_(std::move(layers)), layout_(std::move(layout)) {}

CoarseParts CoarseExperts::Parts(Reader* reader, int first_shard) const {
  CoarseParts parts;
  parts.file = &file_;
  parts.layers = &layers_;
  parts.layout = &layout_;
  parts.reader = reader;
  parts.first_shard = first_shard;
  return parts;
}

void CoarseExperts::Attach(const ExpertStore& store, const SlotLayout& layout) {
  views_.clear();
  for (size_t l = 0; l < layers_.size(); l++) {
    std::vector<ggml_tensor> views;
    for (size_t m = 0; m < layers_[l].matrices.size(); m++) {
      const Tensor& tensor = file_.tensors()[layers_[l].matrices[m].tensor];
      ggml_tensor view = SlotView(tensor, store.most_slots(), layout.slot_bytes());
      view.data = store.slab().data() + layout_.at(static_cast<int>(l), static_cast<int>(m)).offset;
      views.push_back(view);
    }
    views_.push_back(std::move(views));
  }
}

}  // namespace remoe

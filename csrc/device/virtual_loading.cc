#include "device/virtual_loading.h"

#include "device/streamed_model.h"

namespace remoe {

namespace {

class TensorsByName : public BufferTensors {
 public:
  explicit TensorsByName(StreamedModel* model) : model_(model) {}
  Result<TensorOrigin*> Place(const ggml_tensor& tensor) override {
    TensorOrigin* origin = model_->FindOrigin(tensor.name);
    if (origin != nullptr) return origin;
    return Status(Code::kNotSupported, "only the model's own experts can be streamed");
  }
  void Fill(const ggml_tensor&, const void*) override {}

 private:
  StreamedModel* const model_;
};

}  // namespace

std::unique_ptr<BufferTensors> VirtualFileLoading::Begin(size_t) {
  return std::make_unique<TensorsByName>(model_);
}

}  // namespace remoe

#include "plugin/mapping_loading.h"

#include <utility>
#include <vector>

#include "base/format.h"
#include "device/streamed_model.h"
#include "plugin/dense_pages.h"
#include "plugin/log.h"
#include "plugin/mapped_model.h"
#include "plugin/profile_of.h"
#include "plugin/program_hooks.h"
#include "plugin/router_overlay.h"

namespace remoe::plugin {

namespace {

// Loading reads dense weights only, so that nothing is there to measure storage with.
constexpr int kDepth = 8;

}  // namespace

class MappedTensors : public BufferTensors {
 public:
  MappedTensors(MappingLoading* loading, size_t n_tensors)
      : loading_(loading), n_tensors_(n_tensors) {
    origins_.reserve(n_tensors);  // llama.cpp's tensors point at them
  }
  ~MappedTensors() override {
    if (model_ != nullptr && !model_->CheckProcess().ok()) {
      (void)model_.release();  // a forked child: ending it would wait for the parent's threads
      return;
    }
    if (model_ != nullptr) {
      loading_->status_.Leave(model_.get());
      loading_->budget_.Leave(std::move(model_));
    }
    const std::lock_guard<std::mutex> lock(loading_->mutex_);
    for (const FileMapping& shard : mapped_.shards) loading_->taken_.erase(shard.begin);
  }

  Result<TensorOrigin*> Place(const ggml_tensor& tensor) override {
    if (!loading_->settings_.ok()) return loading_->settings_.status();
    if (!ExpertMatrixOf(tensor.name)) {
      return Status(Code::kNotSupported,
                    "an adapter cannot change experts while they are streamed: use one without "
                    "expert tensors, or merge it into the model");
    }
    if (origins_.size() == n_tensors_) {
      return Status(Code::kInvalidArgument, "llama.cpp places more tensors than it announced");
    }
    if (mapped_.shards.empty()) REMOE_RETURN_IF_ERROR(FindModel(tensor));
    const Tensor* found = mapped_.file.Find(tensor.name);
    if (found == nullptr || !IsSame(*found, tensor)) {
      return Status(Code::kCorrupt, mapped_.file.paths()[0] + " does not hold it as it was loaded");
    }
    origins_.emplace_back();
    names_.emplace_back(tensor.name);
    if (origins_.size() == n_tensors_) REMOE_RETURN_IF_ERROR(Open());
    return &origins_.back();
  }

  void Tell(const std::string& line) const override { LogError(line); }

  // llama.cpp fills an expert tensor from its mapping, or else it means another file.
  void Fill(const ggml_tensor& tensor, const void* data) override {
    if (model_ == nullptr) return;
    const uintptr_t address = mapped_.AddressOf(*model_->file().Find(tensor.name));
    if (address == reinterpret_cast<uintptr_t>(data)) return;
    loading_->budget_.Detach(model_.get());
    model_->failure().Keep(Status(
        Code::kNotSupported,
        Format("%s of %s was loaded from elsewhere: load one model at a time, mapped into memory",
               tensor.name, model_->file().paths()[0].c_str())));
  }

 private:
  Status FindModel(const ggml_tensor& tensor) {
    const std::lock_guard<std::mutex> lock(loading_->mutex_);
    Result<MappedModel> mapped = MappedModel::Find(
        tensor, [this](uintptr_t begin) { return loading_->taken_.count(begin) > 0; });
    if (!mapped.ok()) return mapped.status();
    mapped_ = std::move(mapped.value());
    for (const FileMapping& shard : mapped_.shards) loading_->taken_.insert(shard.begin);
    return Status::Ok();
  }

  // All tensors have their places: the model begins to live.
  Status Open() {
    const Settings& settings = loading_->settings_.value();
    const LoadLearned learned = LoadIsPlaced();
    REMOE_RETURN_IF_ERROR(LayRouters(settings.routers, mapped_));
    AttachOptions attach;
    Result<std::shared_ptr<const Profile>> profile = ProfileOf(settings.profile, mapped_.file);
    if (!profile.ok()) return profile.status();
    attach.profile = profile.value();
    attach.policy = settings.policy;
    attach.prefetch = settings.prefetch;
    attach.checks_files = true;

    LoadOptions options;
    options.reader.depth = kDepth;
    options.repack =
        settings.repack == Repack::kAsProgram ? learned.repacks : settings.repack == Repack::kOn;
    for (const std::string& name : names_) options.blocks.insert(std::stoi(name.substr(4)));
    Result<std::unique_ptr<StreamedModel>> model = StreamedModel::Make(mapped_.file, options);
    if (!model.ok()) return model.status();
    for (size_t i = 0; i < names_.size(); i++) {
      origins_[i] = *model.value()->FindOrigin(names_[i]);
    }
    model.value()->failure().TellAlso([](const Status& status) { LogError(status.message()); });
    REMOE_RETURN_IF_ERROR(loading_->budget_.Join(model.value().get(), attach));
    model_ = std::move(model.value());
    loading_->status_.Join(model_.get());
    ReadDensePages(mapped_.file, mapped_.shards);
    return Status::Ok();
  }

  MappingLoading* const loading_;
  const size_t n_tensors_;
  MappedModel mapped_;
  std::vector<TensorOrigin> origins_;
  std::vector<std::string> names_;
  std::unique_ptr<StreamedModel> model_;
};

MappingLoading::MappingLoading(const Result<Settings>& settings)
    : settings_(settings),
      budget_(settings.ok() ? settings.value().cache : CacheAmount()),
      status_(settings.ok() ? settings.value().status : "off",
              settings.ok() ? settings.value().runtime_folder : "") {}

std::unique_ptr<BufferTensors> MappingLoading::Begin(size_t n_tensors) {
  return std::make_unique<MappedTensors>(this, n_tensors);
}

void MappingLoading::Listed() {
  LoadBegins();
}

void MappingLoading::Claimed() {
  LoadHasExperts();
}

}  // namespace remoe::plugin

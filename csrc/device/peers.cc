#include "device/peers.h"

#include <memory>

#include "device/compute/recipe_runner.h"

namespace remoe {

namespace {

// A model that is read one expert at a time, and its runner.
class Checking : public RowComputer {
 public:
  static Result<std::unique_ptr<RowComputer>> Make(const StreamedModel& of) {
    LoadOptions load = of.options();
    load.overlay.clear();
    load.reader.backend = "pread";
    load.reader.depth = 2;
    load.reader.faults = FaultPlan();
    Result<std::unique_ptr<StreamedModel>> model = StreamedModel::Open(of.file().paths()[0], load);
    if (!model.ok()) return model.status();
    AttachOptions attach;
    attach.n_slots = 1;
    attach.policy = "lru";
    attach.single_experts = true;
    REMOE_RETURN_IF_ERROR(model.value()->Attach(attach));
    return std::unique_ptr<RowComputer>(new Checking(std::move(model.value())));
  }
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    return runner_.Learn(layer, recipe);
  }
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    return runner_.Compute(recipe, expert, n_rows, rows, out);
  }
  Result<uint64_t> Sum(int layer, uint16_t expert) override { return runner_.Sum(layer, expert); }
  std::string Name(int layer, int expert) const override { return runner_.Name(layer, expert); }

 private:
  explicit Checking(std::unique_ptr<StreamedModel> model)
      : model_(std::move(model)), runner_(model_.get(), 1) {}
  const std::unique_ptr<StreamedModel> model_;
  RecipeRunner runner_;
};

}  // namespace

uint64_t CheckBytes(const StreamedModel& model) {
  return model.sizes().BudgetFor(1) + ExpertBiasBytes(model.file(), model.layers());
}

Status ConnectPeers(StreamedModel* model, const PeerOptions& options) {
  if (model->store() == nullptr) {
    return Status(Code::kInvalidArgument, "the model has no expert cache yet");
  }
  std::vector<Address> addresses;
  for (const std::string& text : options.addresses) {
    Result<Address> address = Address::Parse(text);
    if (!address.ok()) return address.status();
    addresses.push_back(address.value());
  }
  Result<std::unique_ptr<RowComputer>> checking = Checking::Make(*model);
  if (!checking.ok()) return checking.status();
  model->AddSource(std::make_unique<RemoteSource>(
      addresses, IdentityOf(*model, options.engine, options.fingerprint),
      std::move(checking.value()), options.source));
  return Status::Ok();
}

RemoteSource* FindPeers(const StreamedModel& model) {
  for (const auto& source : model.elsewhere()) {
    if (auto* peers = dynamic_cast<RemoteSource*>(source.get())) return peers;
  }
  return nullptr;
}

}  // namespace remoe

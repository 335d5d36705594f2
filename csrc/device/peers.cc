#include "device/peers.h"

#include <memory>

#include "device/compute/recipe_runner.h"

namespace remoe {

namespace {

// A model that is read one expert at a time, and its runner.
class Checking : public RowComputer {
 public:
  static Result<std::unique_ptr<Checking>> Make(const StreamedModel& of) {
    LoadOptions load = of.options();
    load.overlay.clear();
    load.peers = false;  // a peer is proven by what it did not send, where there is anything else
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
    return std::unique_ptr<Checking>(new Checking(std::move(model.value())));
  }
  StreamedModel* model() const { return model_.get(); }
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    return runner_.Learn(layer, recipe);
  }
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    return runner_.Compute(recipe, expert, n_rows, rows, out);
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    return runner_.Sums(layer, expert);
  }
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
  std::shared_ptr<const TlsKeys> keys;
  if (!options.keys.empty()) {
    Result<std::shared_ptr<const TlsKeys>> loaded =
        TlsKeys::Load(options.keys, TlsKeys::Role::kEngine);
    if (!loaded.ok()) return loaded.status();
    keys = loaded.value();
  }
  std::vector<Address> addresses;
  for (const std::string& text : options.addresses) {
    Result<Address> address = Address::Parse(text);
    if (!address.ok()) return address.status();
    REMOE_RETURN_IF_ERROR(address.value().CheckKeys(keys != nullptr));
    addresses.push_back(address.value());
  }
  Result<std::unique_ptr<Checking>> checking = Checking::Make(*model);
  if (!checking.ok()) return checking.status();
  RemoteSource::Local local;
  local.reader = model->peer_reader();
  // A file without experts is checked with what peers send, by the sums that are in it.
  local.checking = checking.value()->model()->peer_reader();
  local.has_experts = model->file().has_experts();
  for (const ExpertLayer& layer : model->layers()) {
    local.expert_bytes.push_back(layer.expert_bytes());
  }
  local.n_experts = model->sizes().n_experts();
  local.look = [model](ExpertPlacement::Local* now) {
    const ExpertStore& store = *model->store();
    const Geometry& geometry = store.cache().geometry();
    store.Scores(&now->scores);
    now->n_slots = static_cast<size_t>(geometry.n_slots);
    now->held.resize(static_cast<size_t>(geometry.total()));
    for (int id = 0; id < geometry.total(); id++) {
      now->held[id] =
          store.cache().SlotOf(id / geometry.n_experts, id % geometry.n_experts) != kNoSlot;
    }
  };
  Result<std::unique_ptr<RemoteSource>> source = RemoteSource::Make(
      addresses, std::move(keys), IdentityOf(*model, options.engine, options.fingerprint),
      std::move(checking.value()), std::move(local), options.source);
  if (!source.ok()) return source.status();
  model->AddSource(std::move(source.value()));
  return Status::Ok();
}

RemoteSource* FindPeers(const StreamedModel& model) {
  for (const auto& source : model.elsewhere()) {
    if (auto* peers = dynamic_cast<RemoteSource*>(source.get())) return peers;
  }
  return nullptr;
}

}  // namespace remoe

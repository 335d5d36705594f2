#include "device/expert_worker.h"

#include <algorithm>

#include "base/format.h"

namespace remoe {

namespace {

// An engine sends all rows of an expert in one ask or none: with fewer, prompts are computed there.
constexpr uint32_t kLeastRows = 64;

}  // namespace

Result<std::unique_ptr<ExpertWorker>> ExpertWorker::Open(const std::string& path,
                                                         const Options& options) {
  std::shared_ptr<const TlsKeys> keys;
  if (!options.keys.empty()) {
    Result<std::shared_ptr<const TlsKeys>> loaded =
        TlsKeys::Load(options.keys, TlsKeys::Role::kWorker);
    if (!loaded.ok()) return loaded.status();
    keys = loaded.value();
  }
  REMOE_RETURN_IF_ERROR(options.address.CheckKeys(keys != nullptr));
  Result<std::unique_ptr<StreamedModel>> model = StreamedModel::Open(path, options.load);
  if (!model.ok()) return model.status();
  if (!model.value()->file().has_experts()) {
    return Status(Code::kInvalidArgument,
                  path + " holds no experts: a worker needs the whole model");
  }
  std::unique_ptr<ExpertWorker> worker(new ExpertWorker);
  worker->model_ = std::move(model.value());
  REMOE_RETURN_IF_ERROR(worker->Load(options));
  worker->runner_ = std::make_unique<RecipeRunner>(worker->model_.get(), options.n_threads);

  Welcome welcome;
  welcome.identity = IdentityOf(*worker->model_, options.engine, options.fingerprint);
  welcome.credits = options.credits;
  welcome.max_rows = worker->max_rows_;
  welcome.sends_weights = !worker->model_->repacked();
  if (options.chosen_by_engines) welcome.capacity = static_cast<uint32_t>(worker->n_slots());
  const ExpertId n_experts = static_cast<ExpertId>(worker->model_->sizes().n_experts());
  for (const ExpertId id : worker->experts_) {
    const auto layer = static_cast<uint32_t>(id / n_experts);
    const auto expert = static_cast<uint16_t>(id % n_experts);
    Result<ExpertSums> sums = worker->runner_->Sums(static_cast<int>(layer), expert);
    if (!sums.ok()) return sums.status();
    welcome.experts.push_back({layer, expert, sums.value().whole});
  }
  WorkerServer::Limits limits = options.limits;
  limits.columns = 1;
  for (const ExpertLayer& layer : worker->model_->layers()) {
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = worker->model_->file().tensors()[matrix.tensor];
      limits.columns =
          static_cast<uint32_t>(std::max<uint64_t>({limits.columns, tensor.ne[0], tensor.ne[1]}));
    }
  }
  worker->canary_ = std::make_unique<Canary>(worker->runner_.get());
  // What engines choose may be gone by the next check.
  if (!options.chosen_by_engines) worker->canary_->Serve(welcome.experts);
  Result<std::unique_ptr<WorkerServer>> server = WorkerServer::Make(
      options.address, std::move(keys), std::move(welcome), worker->canary_.get(),
      options.chosen_by_engines ? worker->runner_.get() : nullptr, limits);
  if (!server.ok()) return server.status();
  worker->server_ = std::move(server.value());
  return worker;
}

Status ExpertWorker::CheckExperts(const std::vector<ExpertId>& experts) const {
  const ExpertId n_experts = static_cast<ExpertId>(model_->sizes().n_experts());
  const ExpertId total = n_experts * static_cast<ExpertId>(model_->layers().size());
  for (const ExpertId id : experts) {
    const bool there =
        id < total && static_cast<int>(id % n_experts) < model_->layers()[id / n_experts].n_experts;
    if (!there) {
      return Status(Code::kInvalidArgument,
                    Format("there is no expert %d of layer %d", static_cast<int>(id % n_experts),
                           static_cast<int>(id / n_experts)));
    }
  }
  return experts.empty() ? Status(Code::kInvalidArgument, "a worker without experts")
                         : Status::Ok();
}

uint64_t ExpertWorker::LeastBytes(const StreamedModel& model, int n) {
  return model.sizes().BudgetFor(n) + ExpertBiasBytes(model.file(), model.layers()) +
         RecipeRunner::ScratchBytes(model, kLeastRows);
}

Result<int> ExpertWorker::Fit(const Options& options) {
  const uint64_t biases = ExpertBiasBytes(model_->file(), model_->layers());
  const uint64_t least_rows = RecipeRunner::ScratchBytes(*model_, kLeastRows);
  int n = static_cast<int>(options.experts.size());
  if (options.chosen_by_engines) {
    const uint64_t rows = RecipeRunner::ScratchBytes(*model_, static_cast<int>(options.max_rows));
    // Many rows at once, as long as that is little beside the experts.
    const uint64_t scratch = rows < options.budget_bytes / 8 ? rows : least_rows;
    const uint64_t left = options.budget_bytes - std::min(options.budget_bytes, biases + scratch);
    n = std::max(1, model_->sizes().SlotsFor(left));
  }
  const uint64_t needed = LeastBytes(*model_, n), experts = needed - least_rows;
  if (needed > options.budget_bytes) {
    return Status(Code::kBudgetTooSmall,
                  Format("%d experts take %.2f MiB, more than the %.2f MiB of --memory: raise it "
                         "(--memory %lluKiB) or name fewer experts",
                         n, needed / 1048576.0, options.budget_bytes / 1048576.0,
                         static_cast<unsigned long long>((needed + 1023) / 1024)));
  }
  const uint64_t row = RecipeRunner::ScratchBytes(*model_, 1);
  max_rows_ = static_cast<uint32_t>(
      std::clamp<uint64_t>((options.budget_bytes - experts) / row, kLeastRows, options.max_rows));
  used_bytes_ = experts + RecipeRunner::ScratchBytes(*model_, static_cast<int>(max_rows_));
  return n;
}

Status ExpertWorker::Load(const Options& options) {
  REMOE_RETURN_IF_ERROR(CheckExperts(options.experts));
  const Result<int> n = Fit(options);
  if (!n.ok()) return n.status();
  experts_ = options.experts;
  if (experts_.size() > static_cast<size_t>(n.value())) experts_.resize(n.value());
  const ExpertId n_experts = static_cast<ExpertId>(model_->sizes().n_experts());
  AttachOptions attach;
  attach.n_slots = n.value();
  attach.policy = "lru";  // nothing leaves but by Drop()
  attach.lock = options.lock;
  attach.single_experts = true;
  REMOE_RETURN_IF_ERROR(model_->Attach(attach));
  model_->PrefetchForStart(experts_);
  model_->FinishStart();
  for (const ExpertId id : experts_) {
    const int layer = static_cast<int>(id / n_experts), expert = static_cast<int>(id % n_experts);
    if (model_->store()->cache().SlotOf(layer, expert) != kNoSlot) continue;
    return Status(Code::kIo,
                  Format("layer %d, expert %d could not be read from %s",
                         model_->layers()[layer].block, expert, model_->file().paths()[0].c_str()));
  }
  return Status::Ok();
}

}  // namespace remoe

#include "device/expert_worker.h"

#include "base/format.h"

namespace remoe {

Result<std::unique_ptr<ExpertWorker>> ExpertWorker::Open(const std::string& path,
                                                         const Options& options) {
  Result<std::unique_ptr<StreamedModel>> model = StreamedModel::Open(path, options.load);
  if (!model.ok()) return model.status();
  std::unique_ptr<ExpertWorker> worker(new ExpertWorker);
  worker->model_ = std::move(model.value());
  REMOE_RETURN_IF_ERROR(worker->Load(options));
  worker->runner_ = std::make_unique<RecipeRunner>(worker->model_.get(), options.n_threads);

  Welcome welcome;
  welcome.identity = IdentityOf(*worker->model_, options.engine, options.fingerprint);
  welcome.credits = options.credits;
  welcome.max_rows = options.max_rows;
  const ExpertId n_experts = static_cast<ExpertId>(worker->model_->sizes().n_experts());
  for (const ExpertId id : options.experts) {
    const auto layer = static_cast<uint32_t>(id / n_experts);
    const auto expert = static_cast<uint16_t>(id % n_experts);
    Result<uint64_t> sum = worker->runner_->Sum(static_cast<int>(layer), expert);
    if (!sum.ok()) return sum.status();
    welcome.experts.push_back({layer, expert, sum.value()});
  }
  worker->canary_ = std::make_unique<Canary>(worker->runner_.get());
  worker->canary_->Serve(welcome.experts);
  Result<std::unique_ptr<WorkerServer>> server = WorkerServer::Make(
      options.address, std::move(welcome), worker->canary_.get(), options.limits);
  if (!server.ok()) return server.status();
  worker->server_ = std::move(server.value());
  return worker;
}

Status ExpertWorker::Load(const Options& options) {
  const int n = static_cast<int>(options.experts.size());
  const ExpertId n_experts = static_cast<ExpertId>(model_->sizes().n_experts());
  const ExpertId total = n_experts * static_cast<ExpertId>(model_->layers().size());
  for (const ExpertId id : options.experts) {
    const bool there =
        id < total && static_cast<int>(id % n_experts) < model_->layers()[id / n_experts].n_experts;
    if (!there) {
      return Status(Code::kInvalidArgument,
                    Format("there is no expert %d of layer %d", static_cast<int>(id % n_experts),
                           static_cast<int>(id / n_experts)));
    }
  }
  if (n == 0) return Status(Code::kInvalidArgument, "a worker without experts");
  const uint64_t needed =
      model_->sizes().BudgetFor(n) + ExpertBiasBytes(model_->file(), model_->layers());
  if (needed > options.budget_bytes) {
    return Status(Code::kBudgetTooSmall,
                  Format("%d experts take %.2f MiB, more than the %.2f MiB of --memory: raise it "
                         "(--memory %lluKiB) or name fewer experts",
                         n, needed / 1048576.0, options.budget_bytes / 1048576.0,
                         static_cast<unsigned long long>((needed + 1023) / 1024)));
  }
  AttachOptions attach;
  attach.n_slots = n;
  attach.policy = "lru";  // nothing ever leaves
  attach.lock = options.lock;
  attach.single_experts = true;
  REMOE_RETURN_IF_ERROR(model_->Attach(attach));
  model_->PrefetchForStart(options.experts);
  model_->FinishStart();
  for (const ExpertId id : options.experts) {
    const int layer = static_cast<int>(id / n_experts), expert = static_cast<int>(id % n_experts);
    if (model_->store()->cache().SlotOf(layer, expert) != kNoSlot) continue;
    return Status(Code::kIo,
                  Format("layer %d, expert %d could not be read from %s",
                         model_->layers()[layer].block, expert, model_->file().paths()[0].c_str()));
  }
  return Status::Ok();
}

}  // namespace remoe

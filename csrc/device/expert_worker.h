// ExpertWorker: some experts of a model in memory, computed for engines on other machines.
//
// Nothing else of the model is loaded. The experts come through the engine's own reader into a slab
// of the engine's own layout, once, and stay; a sum over what is in memory goes into the handshake.
// The budget covers slots, staging, the experts' biases and the memory to compute in.
//
// Open() and the destructor in one thread; Run() in one thread until Stop(), from any.
#ifndef REMOE_DEVICE_EXPERT_WORKER_H_
#define REMOE_DEVICE_EXPERT_WORKER_H_

#include <memory>
#include <string>
#include <vector>

#include "device/compute/recipe_runner.h"
#include "device/streamed_model.h"
#include "remote/canary.h"
#include "remote/worker_server.h"

namespace remoe {

class ExpertWorker {
 public:
  struct Options {
    LoadOptions load;
    std::vector<ExpertId> experts;   // layer * n_experts + expert
    bool chosen_by_engines = false;  // experts: only the beginning, as far as the budget goes
    uint64_t budget_bytes = 0;
    bool lock = false;
    int n_threads = 1;
    std::string engine, fingerprint;  // see IdentityOf()
    Address address;
    std::string keys;  // path; empty for connections within this machine
    uint32_t credits = 128, max_rows = 512;
    WorkerServer::Limits limits;
  };
  // The least budget that n experts of a model take, with the memory to compute in.
  static uint64_t LeastBytes(const StreamedModel& model, int n);
  // Loads the experts and listens. kBudgetTooSmall naming what they take.
  static Result<std::unique_ptr<ExpertWorker>> Open(const std::string& path,
                                                    const Options& options);
  Status Run() { return server_->Run(); }
  void Stop() { server_->Stop(); }
  uint16_t port() const { return server_->port(); }
  WorkerCounts counts() const { return server_->counts(); }
  std::vector<std::string> TakeLines() { return server_->TakeLines(); }
  // What experts, biases and computing may take of the budget.
  uint64_t budget_bytes() const { return used_bytes_; }
  int n_slots() const { return model_->store()->cache().total_slots(); }
  const StreamedModel& model() const { return *model_; }
  // Whether it still computes as it did; see Canary. Any thread.
  Status Check() { return canary_->Check(); }

 private:
  ExpertWorker() = default;
  Status Load(const Options& options);
  // RETURNS: the slots that the budget allows, of those wanted. Sets max_rows_.
  Result<int> Fit(const Options& options);
  Status CheckExperts(const std::vector<ExpertId>& experts) const;

  std::vector<ExpertId> experts_;  // that it begins with
  uint32_t max_rows_ = 0;
  uint64_t used_bytes_ = 0;
  std::unique_ptr<StreamedModel> model_;
  std::unique_ptr<RecipeRunner> runner_;
  std::unique_ptr<Canary> canary_;
  std::unique_ptr<WorkerServer> server_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_EXPERT_WORKER_H_

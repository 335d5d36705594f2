// How a layer's step has experts computed elsewhere.
#include <algorithm>

#include "device/compute/executor.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

// The rows of a step that PairRunner has prepared.
class StepRows : public ExpertRows {
 public:
  StepRows(LayerStep* step, const PairRunner* pairs) : step_(step), pairs_(pairs) {}
  int n_rows(uint16_t expert) const override {
    return static_cast<int>(step_->PairsOf(expert).size());
  }
  int64_t n_in() const override { return pairs_->n_in(); }
  int64_t n_out() const override { return pairs_->n_out(); }
  void Gather(uint16_t expert, float* rows) const override {
    for (const Pair& pair : step_->PairsOf(expert)) {
      pairs_->CopyInput(pair.token, rows);
      rows += n_in();
    }
  }
  void Describe(std::string* recipe) const override { pairs_->Describe(recipe); }

 private:
  LayerStep* step_;
  const PairRunner* pairs_;
};

}  // namespace

void Executor::SendElsewhere(const Job& job) {
  const auto& sources = job.model->elsewhere();
  if (sources.empty() || gpu_ != nullptr || !ByPairs(job) || !pairs_->can_be_sent()) return;
  const Cache& cache = job.model->store()->cache();
  std::vector<Placement> experts;
  experts.reserve(step_.experts().size());
  for (const uint16_t expert : step_.experts()) {
    experts.emplace_back();
    experts.back().expert = expert;
    // What is here already is nobody else's to compute.
    experts.back().hit = cache.SlotOf(step_.layer(), expert) != kNoSlot;
    experts.back().prefetched = cache.PrefetchSlotOf(step_.layer(), expert) != kNoSlot;
  }
  // A step that has everything here costs nothing more.
  const bool whole =
      std::all_of(experts.begin(), experts.end(), [](const Placement& each) { return each.hit; });
  if (whole) return;
  const StepRows rows(&step_, pairs_);
  std::vector<bool> taken(experts.size());
  Demand demand;
  demand.layer = step_.layer();
  demand.n_tokens = step_.n_tokens();
  demand.experts = &experts;
  demand.rows = &rows;
  demand.arrivals = job.model->store()->arrivals();
  demand.ticket = demand.arrivals->ticket();
  for (const auto& source : sources) source->Begin(demand, &taken);
  for (size_t i = 0; i < experts.size(); i++) {
    if (taken[i]) step_.Send(experts[i].expert);
  }
  if (step_.n_sent() == 0) return;
  MarkUsed(job);
}

void Executor::EndElsewhere(const Job& job) {
  for (const auto& source : job.model->elsewhere()) source->End();
}

Status Executor::AwaitElsewhere(const Job& job) {
  Status status;
  while (status.ok() && step_.n_sent() > 0) status = TakeArrivals(job, true, false);
  return status;
}

}  // namespace remoe

// ProcessBudget: one expert cache's worth of memory for all models of the process.
//
// A model that is loaded takes its share, for which the others' caches become smaller, and gives it
// back when it goes. Every model has its floor, the experts of one token and layer; what is left is
// shared out in proportion to what each could still use. A share of experts (30%) is each model's own,
// and needs no sharing.
//
// Models are ended as they leave. In a forked child it begins anew. Any thread.
#ifndef REMOE_PLUGIN_PROCESS_BUDGET_H_
#define REMOE_PLUGIN_PROCESS_BUDGET_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/birthplace.h"
#include "base/status.h"
#include "device/streamed_model.h"
#include "plugin/cache_amount.h"

namespace remoe::plugin {

// What a model needs and could use at most, in bytes.
struct Claim {
  uint64_t floor_bytes = 0;
  uint64_t most_bytes = 0;
};
// Bytes for each claim. REQUIRES: the floors together fit the budget.
std::vector<uint64_t> ShareOut(uint64_t budget_bytes, const std::vector<Claim>& claims);

class ProcessBudget {
 public:
  explicit ProcessBudget(const CacheAmount& amount) : amount_(amount) {}

  // Gives the model its cache; `options` says all but its size. kBudgetTooSmall where the floors of
  // all models together do not fit: then nothing has changed.
  Status Join(StreamedModel* model, const AttachOptions& options);
  // Has the model give its cache up: it is not to be used any more. The others grow.
  void Detach(StreamedModel* model);
  // Ends the model, if it has joined or not; the others grow.
  void Leave(std::unique_ptr<StreamedModel> model);
  // Bytes of all caches.
  uint64_t n_bytes() const;

 private:
  using Models = std::vector<StreamedModel*>;
  uint64_t Total(const Models& models);
  // Slots for each of them.
  std::vector<int> Slots(const Models& models, uint64_t budget_bytes) const;
  Status CheckFloors(const Models& models, uint64_t budget_bytes) const;
  // RETURNS: whether it had joined. REQUIRES: the lock.
  bool Forget(const StreamedModel* model);
  // Those who give go first, so that memory never holds both.
  void Resize(const std::vector<int>& slots);

  const CacheAmount amount_;
  mutable std::mutex mutex_;
  Birthplace birthplace_;
  Models models_;
  uint64_t room_bytes_ = 0;  // of kAuto, dense weights included: measured when the first joins
};

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_PROCESS_BUDGET_H_

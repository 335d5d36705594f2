#include "plugin/process_budget.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "plugin/available_memory.h"
#include "plugin/log.h"

namespace remoe::plugin {

namespace {

// A load comes before its contexts: of what memory leaves, this much is for KV caches and buffers.
constexpr double kShareForContexts = 0.25;

int FloorSlots(const StreamedModel& model) {
  return std::max(1, model.file().n_experts_used());
}

Claim ClaimOf(const StreamedModel& model) {
  const CacheSizes& sizes = model.sizes();
  return {sizes.BudgetFor(FloorSlots(model)), sizes.BudgetFor(sizes.total_experts())};
}

}  // namespace

std::vector<uint64_t> ShareOut(uint64_t budget_bytes, const std::vector<Claim>& claims) {
  uint64_t floors = 0;
  double wished = 0;
  for (const Claim& claim : claims) {
    floors += claim.floor_bytes;
    wished += static_cast<double>(claim.most_bytes - claim.floor_bytes);
  }
  const double rest = static_cast<double>(budget_bytes - floors);
  const double part = wished > 0 ? std::min(1.0, rest / wished) : 0;
  std::vector<uint64_t> shares;
  for (const Claim& claim : claims) {
    const double more = static_cast<double>(claim.most_bytes - claim.floor_bytes) * part;
    shares.push_back(claim.floor_bytes + static_cast<uint64_t>(more));
  }
  return shares;
}

uint64_t ProcessBudget::Total(const Models& models) {
  if (amount_.kind != CacheAmount::Kind::kAuto) return amount_.n_bytes;
  if (models_.empty()) {
    const AvailableMemory memory = MeasureMemory();
    room_bytes_ = memory.n_bytes - std::min(memory.n_bytes, memory.reserve_bytes);
  }
  uint64_t dense = 0;
  for (const StreamedModel* model : models) dense += model->file().dense_bytes();
  const uint64_t room = room_bytes_ - std::min(room_bytes_, dense);
  return static_cast<uint64_t>(static_cast<double>(room) * (1 - kShareForContexts));
}

Status ProcessBudget::CheckFloors(const Models& models, uint64_t budget_bytes) const {
  if (amount_.kind == CacheAmount::Kind::kShare) return Status::Ok();
  uint64_t floors = 0;
  for (const StreamedModel* model : models) floors += ClaimOf(*model).floor_bytes;
  if (floors <= budget_bytes) return Status::Ok();
  return Status(
      Code::kBudgetTooSmall,
      Format("the expert cache is below the floor: one token uses %d experts of a layer at once, "
             "which takes %.2f MiB%s, and there are %.2f MiB: REMOE_CACHE=%lluKiB or more",
             models.back()->file().n_experts_used(), floors / 1048576.0,
             models.size() > 1 ? " with the other models of this process" : "",
             budget_bytes / 1048576.0, static_cast<unsigned long long>((floors + 1023) / 1024)));
}

std::vector<int> ProcessBudget::Slots(const Models& models, uint64_t budget_bytes) const {
  std::vector<int> slots;
  if (amount_.kind == CacheAmount::Kind::kShare) {
    for (const StreamedModel* model : models) {
      const int total = model->sizes().total_experts();
      const int wished = static_cast<int>(std::lround(amount_.share * total));
      slots.push_back(std::clamp(wished, FloorSlots(*model), total));
    }
    return slots;
  }
  std::vector<Claim> claims;
  for (const StreamedModel* model : models) claims.push_back(ClaimOf(*model));
  const std::vector<uint64_t> shares = ShareOut(budget_bytes, claims);
  for (size_t i = 0; i < models.size(); i++) {
    slots.push_back(models[i]->sizes().SlotsFor(shares[i]));
  }
  return slots;
}

void ProcessBudget::Resize(const std::vector<int>& slots) {
  for (const bool grows : {false, true}) {
    for (size_t i = 0; i < models_.size(); i++) {
      const int has = models_[i]->store() != nullptr ? models_[i]->store()->n_slots() : 0;
      if (has != 0 && (grows ? slots[i] > has : slots[i] < has)) models_[i]->Resize(slots[i]);
    }
  }
}

Status ProcessBudget::Join(StreamedModel* model, const AttachOptions& options) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!birthplace_.is_here()) {  // a forked child: the models so far are its parent's
    models_.clear();
    birthplace_ = Birthplace();
  }
  Models wished = models_;
  wished.push_back(model);
  const uint64_t budget_bytes = Total(wished);
  REMOE_RETURN_IF_ERROR(CheckFloors(wished, budget_bytes));
  const std::vector<int> slots = Slots(wished, budget_bytes);
  AttachOptions sized = options;
  sized.n_slots = slots.back();
  sized.most_slots = Slots({model}, Total({model})).back();
  sized.takes_back = false;  // what another model has now is not to be had
  Resize(slots);
  const Status status = model->Attach(sized);
  if (!status.ok()) {
    if (!models_.empty()) Resize(Slots(models_, Total(models_)));
    return status;
  }
  models_.push_back(model);
  LogInfo(Format("%s: a cache of %d of %d experts, %.2f MiB", model->file().paths()[0].c_str(),
                 slots.back(), model->sizes().total_experts(),
                 model->sizes().BudgetFor(slots.back()) / 1048576.0));
  return Status::Ok();
}

bool ProcessBudget::Forget(const StreamedModel* model) {
  const auto left = std::find(models_.begin(), models_.end(), model);
  if (left == models_.end()) return false;
  models_.erase(left);
  return true;
}

// Under the lock: a model that joins meanwhile, in another thread, looks at the caches of all.
void ProcessBudget::Detach(StreamedModel* model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool joined = Forget(model);
  model->Detach();
  if (joined && !models_.empty()) Resize(Slots(models_, Total(models_)));
}

void ProcessBudget::Leave(std::unique_ptr<StreamedModel> model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!Forget(model.get())) return;
  model.reset();  // under the lock: a model that joins meanwhile must not find half of it
  if (!models_.empty()) Resize(Slots(models_, Total(models_)));
}

uint64_t ProcessBudget::n_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  uint64_t sum = 0;
  for (const StreamedModel* model : models_) {
    if (model->store() != nullptr) sum += model->store()->budget_bytes();
  }
  return sum;
}

}  // namespace remoe::plugin

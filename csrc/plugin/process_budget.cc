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

uint64_t ProcessBudget::Total(const std::vector<Member>& members) {
  if (amount_.kind != CacheAmount::Kind::kAuto) return amount_.n_bytes;
  if (members_.empty()) {
    const AvailableMemory memory = MeasureMemory();
    room_bytes_ = memory.n_bytes - std::min(memory.n_bytes, memory.reserve_bytes);
  }
  uint64_t dense = 0;
  for (const Member& member : members) dense += member.model->file().dense_bytes();
  const uint64_t room = room_bytes_ - std::min(room_bytes_, dense);
  return static_cast<uint64_t>(static_cast<double>(room) * (1 - kShareForContexts));
}

Status ProcessBudget::CheckFloors(const std::vector<Member>& members, uint64_t budget_bytes) const {
  if (amount_.kind == CacheAmount::Kind::kShare) return Status::Ok();
  uint64_t floors = 0;
  for (const Member& member : members) floors += ClaimOf(*member.model).floor_bytes;
  if (floors <= budget_bytes) return Status::Ok();
  const int n_used = members.back().model->file().n_experts_used();
  return Status(
      Code::kBudgetTooSmall,
      Format("the expert cache is below the floor: one token uses %d experts of a layer at once, "
             "which takes %.2f MiB%s, and there are %.2f MiB: REMOE_CACHE=%lluKiB or more",
             n_used, floors / 1048576.0,
             members.size() > 1 ? " with the other models of this process" : "",
             budget_bytes / 1048576.0, static_cast<unsigned long long>((floors + 1023) / 1024)));
}

std::vector<int> ProcessBudget::Slots(const std::vector<Member>& members,
                                      uint64_t budget_bytes) const {
  std::vector<int> slots;
  if (amount_.kind == CacheAmount::Kind::kShare) {
    for (const Member& member : members) {
      const int total = member.model->sizes().total_experts();
      const int wished = static_cast<int>(std::lround(amount_.share * total));
      slots.push_back(std::clamp(wished, FloorSlots(*member.model), total));
    }
    return slots;
  }
  std::vector<Claim> claims;
  for (const Member& member : members) claims.push_back(ClaimOf(*member.model));
  const std::vector<uint64_t> shares = ShareOut(budget_bytes, claims);
  for (size_t i = 0; i < members.size(); i++) {
    slots.push_back(members[i].model->sizes().SlotsFor(shares[i]));
  }
  return slots;
}

// Before anything grows, so that memory never holds both.
void ProcessBudget::Shrink(const std::vector<int>& slots) {
  for (size_t i = 0; i < members_.size(); i++) {
    Member& member = members_[i];
    if (slots[i] >= member.options.n_slots) continue;
    member.options.n_slots = slots[i];
    const Status status = member.model->Resize(member.options);
    if (!status.ok()) member.model->failure().Keep(status);
  }
}

void ProcessBudget::Grow(const std::vector<int>& slots) {
  for (size_t i = 0; i < members_.size(); i++) {
    Member& member = members_[i];
    if (slots[i] <= member.options.n_slots) continue;
    member.options.n_slots = slots[i];
    const Status status = member.model->Resize(member.options);
    if (!status.ok()) member.model->failure().Keep(status);
  }
}

Status ProcessBudget::Join(StreamedModel* model, const AttachOptions& options) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Member> wished = members_;
  wished.push_back({model, options});
  const uint64_t budget_bytes = Total(wished);
  REMOE_RETURN_IF_ERROR(CheckFloors(wished, budget_bytes));
  const std::vector<int> slots = Slots(wished, budget_bytes);
  std::vector<int> before;
  for (const Member& member : members_) before.push_back(member.options.n_slots);
  Shrink(slots);
  wished.back().options.n_slots = slots.back();
  const Status status = model->Attach(wished.back().options);
  if (!status.ok()) {
    Grow(before);
    return status;
  }
  members_.push_back(wished.back());
  LogInfo(Format("%s: a cache of %d of %d experts, %.2f MiB", model->file().paths()[0].c_str(),
                 slots.back(), model->sizes().total_experts(),
                 model->store()->budget_bytes() / 1048576.0));
  return Status::Ok();
}

void ProcessBudget::Leave(StreamedModel* model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto left = std::remove_if(members_.begin(), members_.end(),
                                   [model](const Member& member) { return member.model == model; });
  if (left == members_.end()) return;
  members_.erase(left, members_.end());
  // Its memory goes before the others take it.
  model->Detach();
  if (!members_.empty()) Grow(Slots(members_, Total(members_)));
}

uint64_t ProcessBudget::n_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  uint64_t sum = 0;
  for (const Member& member : members_) {
    if (member.model->store() != nullptr) sum += member.model->store()->budget_bytes();
  }
  return sum;
}

}  // namespace remoe::plugin

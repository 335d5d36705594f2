#include "remote/canary.h"

#include <cstring>

#include "base/format.h"
#include "remote/proof.h"

namespace remoe {

Result<RowComputer::Learned> Canary::Learn(int layer, const std::string& recipe) {
  Result<Learned> learned = computer_->Learn(layer, recipe);
  if (!learned.ok()) return learned;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (kinds_.count(learned.value().kind) > 0) return learned;
  for (const ServedExpert& each : served_) {
    if (static_cast<int>(each.layer) != layer) continue;
    kinds_.emplace(learned.value().kind, rows_.size());
    rows_.push_back({layer,
                     learned.value().recipe,
                     static_cast<uint16_t>(each.expert),
                     learned.value().n_in,
                     {}});
    break;
  }
  return learned;
}

Status Canary::Check() {
  REMOE_RETURN_IF_ERROR(CheckSum());
  return CheckRow();
}

Status Canary::CheckSum() {
  ServedExpert served;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (served_.empty()) return Status::Ok();
    served = served_[next_expert_++ % served_.size()];
  }
  const int layer = static_cast<int>(served.layer);
  const Result<ExpertSums> sums = computer_->Sums(layer, static_cast<uint16_t>(served.expert));
  if (!sums.ok()) return sums.status();
  if (sums.value().whole == served.sum) return Status::Ok();
  return Status(Code::kCorrupt,
                Format("the bytes of %s have changed in memory",
                       computer_->Name(layer, static_cast<int>(served.expert)).c_str()));
}

Status Canary::CheckRow() {
  Row row;
  size_t at;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (rows_.empty()) return Status::Ok();  // no engine has been here yet
    at = next_row_++ % rows_.size();
    row = rows_[at];
  }
  std::vector<float> out;
  REMOE_RETURN_IF_ERROR(
      computer_->Compute(row.recipe, row.expert, 1, Proof::CanaryRows(1, row.n_in).data(), &out));
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<float>& first = rows_[at].first;
  if (first.empty()) first = out;
  if (first.size() == out.size() &&
      std::memcmp(first.data(), out.data(), out.size() * sizeof(float)) == 0) {
    return Status::Ok();
  }
  return Status(Code::kCorrupt, Format("a row of %s was computed with other bits than before",
                                       computer_->Name(row.layer, row.expert).c_str()));
}

}  // namespace remoe

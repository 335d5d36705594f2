#include "runtime/arrivals.h"

#include <algorithm>
#include <iterator>

namespace remoe {

Arrivals::Ticket Arrivals::Open() {
  const std::lock_guard<std::mutex> lock(mutex_);
  final_.clear();
  partial_.clear();
  return ++ticket_;
}

bool Arrivals::Post(Ticket ticket, Arrival arrival) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ticket != ticket_) return false;
  if (arrival.kind == Arrival::Kind::kAllButDown) {
    partial_.push_back(arrival.expert);
  } else {
    // What is final makes an earlier part of it old news.
    partial_.erase(std::remove(partial_.begin(), partial_.end(), arrival.expert), partial_.end());
    final_.push_back(std::move(arrival));
  }
  // Under the lock: the consumer may be gone right after.
  if (ReadyLocked()) changed_.notify_one();
  return true;
}

bool Arrivals::Post(Ticket ticket, Arrival::Kind kind, uint16_t expert, const Status& status) {
  Arrival arrival;
  arrival.kind = kind;
  arrival.expert = expert;
  arrival.status = status;
  return Post(ticket, std::move(arrival));
}

void Arrivals::PostWeights(Ticket ticket, const std::vector<uint16_t>& experts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ticket != ticket_ || experts.empty()) return;
  for (const uint16_t expert : experts) {
    final_.emplace_back();
    final_.back().expert = expert;
  }
  changed_.notify_one();
}

void Arrivals::TakeFinalLocked(std::vector<Arrival>* arrived) {
  arrived->insert(arrived->end(), std::make_move_iterator(final_.begin()),
                  std::make_move_iterator(final_.end()));
  final_.clear();
}

void Arrivals::TakeNow(std::vector<Arrival>* arrived) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeFinalLocked(arrived);
}

bool Arrivals::Wait(bool all_but_down, std::vector<Arrival>* arrived) {
  std::unique_lock<std::mutex> lock(mutex_);
  partial_awaited_ = all_but_down;
  const bool waits = !ReadyLocked();
  if (waits) changed_.wait(lock, [this] { return ReadyLocked(); });
  if (!final_.empty()) {
    TakeFinalLocked(arrived);
    return waits;
  }
  for (const uint16_t expert : partial_) {
    arrived->emplace_back();
    arrived->back().kind = Arrival::Kind::kAllButDown;
    arrived->back().expert = expert;
  }
  partial_.clear();
  return waits;
}

}  // namespace remoe

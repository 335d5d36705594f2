// How a worker comes to hold what its engines wish for: one expert at a time, within its allowance.
#include <algorithm>
#include <chrono>

#include "base/format.h"
#include "remote/worker_server.h"

namespace remoe {

namespace {

// What is held is worth that much more: two experts of one worth must not take turns.
constexpr float kKept = 1.25f;
constexpr size_t kMostLines = 100;
constexpr auto kUnreadFor = std::chrono::minutes(1);  // an expert that storage does not give

}  // namespace

Status WorkerServer::TakeWish(Client* client, const Frame& frame) {
  if (held_experts_ == nullptr) return Status(Code::kCorrupt, "a wish that nobody may have");
  Result<std::vector<WishedExpert>> wish = ParseWish(frame.payload);
  if (!wish.ok()) return wish.status();
  if (wish.value().size() > welcome_.capacity) return Status(Code::kCorrupt, "too large a wish");
  std::map<Key, float> wished;
  for (const WishedExpert& each : wish.value()) {
    if (!held_experts_->Exists(each.layer, each.expert)) {
      return Status(Code::kCorrupt, "a wish for an expert that does not exist");
    }
    wished[{each.layer, each.expert}] = each.worth;
  }
  client->wish = std::move(wished);
  wished_.notify_all();
  return Status::Ok();
}

// REQUIRES: the lock. All engines' wishes together; the best expert that is not held, and what it
// takes the place of.
WorkerServer::Move WorkerServer::NextMove() const {
  std::map<Key, float> worth;
  for (const auto& client : clients_) {
    for (const auto& [key, value] : client->wish) worth[key] += value;
  }
  const auto worth_of = [&](const Key& key) {
    const auto found = worth.find(key);
    return found == worth.end() ? 0.0f : found->second;
  };
  Move move;
  float best = 0;
  for (const auto& [key, value] : worth) {
    const auto failed = unreadable_.find(key);
    const bool again = failed == unreadable_.end() || Clock::now() >= failed->second;
    if (value <= best || held_.count(key) > 0 || !again) continue;
    best = value;
    move.added = key;
    move.any = true;
  }
  if (!move.any || held_.size() < welcome_.capacity) return move;
  move.drops = true;
  float least = 0;
  bool found = false;
  for (const auto& [key, sum] : held_) {
    if (found && worth_of(key) >= least) continue;
    least = worth_of(key);
    move.dropped = key;
    found = true;
  }
  move.any = found && best > kKept * least;
  return move;
}

// REQUIRES: the lock.
void WorkerServer::Announce(const HeldChange& change) {
  Frame frame;
  frame.kind = FrameKind::kHolds;
  frame.payload = change.Bytes();
  for (const auto& client : clients_) {
    if (!client->greeted || client->closing || client->gone) continue;
    client->gone |= !client->stream.Send(frame).ok();
  }
  wake_.Raise();
}

void WorkerServer::MoveAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ending_) {
    const Move move = NextMove();
    if (!move.any) {
      wished_.wait_for(lock, std::chrono::seconds(1));
      continue;
    }
    if (move.drops) {
      const auto dropped = held_.find(move.dropped);
      HeldChange change;
      change.dropped.push_back({move.dropped.first, move.dropped.second, dropped->second});
      held_.erase(dropped);
      Announce(change);
      idle_.wait(lock, [&] { return computing_ != move.dropped; });
      lock.unlock();
      held_experts_->Drop(static_cast<int>(move.dropped.first),
                          static_cast<uint16_t>(move.dropped.second));
      lock.lock();
    }
    lock.unlock();
    const int layer = static_cast<int>(move.added.first);
    const auto expert = static_cast<uint16_t>(move.added.second);
    const auto began = Clock::now();
    Status status = held_experts_->Hold(layer, expert);
    Result<ExpertSums> sums(status);
    if (status.ok()) sums = computer_->Sums(layer, expert);
    lock.lock();
    const uint64_t n_bytes = held_experts_->ExpertBytes(layer);
    if (sums.ok()) {
      held_[move.added] = sums.value().whole;
      unreadable_.erase(move.added);
      counts_.moved_bytes += n_bytes;
      HeldChange change;
      change.added.push_back({move.added.first, move.added.second, sums.value().whole});
      Announce(change);
    } else {
      // Others that are wished for have their turn meanwhile.
      const bool first = unreadable_.count(move.added) == 0;
      unreadable_[move.added] = Clock::now() + kUnreadFor;
      if (first && lines_.size() < kMostLines) {
        lines_.push_back(Format("%s was not read: %s", computer_->Name(layer, expert).c_str(),
                                sums.status().message().c_str()));
      }
    }
    // The allowance: so long may reading that much take, at the least.
    const auto until =
        began + std::chrono::microseconds(n_bytes * 1000000 / limits_.move_bytes_per_s);
    wished_.wait_until(lock, until, [&] { return ending_; });
  }
}

}  // namespace remoe

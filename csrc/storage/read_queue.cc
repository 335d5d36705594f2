#include "storage/read_queue.h"

#include <algorithm>
#include <utility>

namespace remoe {

void ReadQueue::Push(std::vector<std::unique_ptr<Operation>> operations) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    n_owed_ += static_cast<int>(operations.size());
    for (auto& operation : operations) {
      auto& queue = operation->background() ? background_ : demand_;
      queue.push_back(std::move(operation));
    }
  }
  if (operations.size() == 1) {
    work_.notify_one();
  } else {
    work_.notify_all();
  }
}

bool ReadQueue::StartableLocked() const {
  if (!demand_.empty()) return n_demand_ < depth_;
  return !background_.empty() && n_background_ < background_depth_;
}

std::unique_ptr<Operation> ReadQueue::TakeLocked() {
  if (!StartableLocked()) return nullptr;
  auto& queue = demand_.empty() ? background_ : demand_;
  auto operation = std::move(queue.front());
  queue.pop_front();
  ++(operation->background() ? n_background_ : n_demand_);
  // Taking the last demand operation may be what lets background ones start.
  if (StartableLocked()) work_.notify_one();
  return operation;
}

std::unique_ptr<Operation> ReadQueue::TryPop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return TakeLocked();
}

std::unique_ptr<Operation> ReadQueue::Pop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (auto operation = TakeLocked()) return operation;
    if (closed_ && demand_.empty() && background_.empty()) return nullptr;
    work_.wait(lock);
  }
}

std::vector<Batch::Item> ReadQueue::SettleLocked(const Operation& operation, const Status& status) {
  std::vector<Batch::Item> ended;
  for (const int index : operation.items()) {
    Batch::Item& item = operation.batch()->items[static_cast<size_t>(index)];
    if (item.status.ok()) item.status = status;
    if (--item.n_pending > 0) continue;
    if (item.status.ok()) {
      ++counts_.reads;
      counts_.bytes += item.read.n_bytes;
      if (operation.background()) counts_.background_bytes += item.read.n_bytes;
    } else if (item.status.code() == Code::kCancelled) {
      ++counts_.cancelled;
    } else {
      ++counts_.errors;
    }
    ended.push_back(item);
  }
  return ended;
}

void ReadQueue::Release(const Operation& operation) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --(operation.background() ? n_background_ : n_demand_);
    counts_.operations += operation.n_attempts();
    counts_.device_bytes += operation.moved_bytes();
  }
  work_.notify_one();
}

void ReadQueue::Settle(std::unique_ptr<Operation> operation) {
  std::vector<Batch::Item> ended;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended = SettleLocked(*operation, operation->status());
  }
  for (const Batch::Item& item : ended) operation->batch()->done(item.read, item.status);
  operation.reset();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--n_owed_ == 0) settled_.notify_all();
}

int ReadQueue::CancelBackground() {
  std::deque<std::unique_ptr<Operation>> dropped;
  std::vector<std::pair<std::shared_ptr<Batch>, Batch::Item>> ended;
  int n_reads = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(background_);
    const Status cancelled(Code::kCancelled, "background read cancelled");
    for (const auto& operation : dropped) {
      for (const int index : operation->items()) {
        // Counted at the first of its operations; one in flight settles the read later.
        n_reads += operation->batch()->items[static_cast<size_t>(index)].status.ok() ? 1 : 0;
      }
      for (Batch::Item& item : SettleLocked(*operation, cancelled)) {
        ended.emplace_back(operation->batch(), std::move(item));
      }
    }
  }
  for (const auto& [batch, item] : ended) batch->done(item.read, item.status);
  const std::lock_guard<std::mutex> lock(mutex_);
  n_owed_ -= static_cast<int>(dropped.size());
  if (n_owed_ == 0) settled_.notify_all();
  return n_reads;
}

void ReadQueue::Promote(uint64_t tag) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto wanted = [tag](const std::unique_ptr<Operation>& operation) {
      const auto& items = operation->batch()->items;
      return std::any_of(operation->items().begin(), operation->items().end(), [&](int index) {
        return items[static_cast<size_t>(index)].read.tag == tag;
      });
    };
    const auto first = std::stable_partition(
        background_.begin(), background_.end(),
        [&](const std::unique_ptr<Operation>& operation) { return !wanted(operation); });
    for (auto it = first; it != background_.end(); ++it) {
      (*it)->set_background(false);
      demand_.push_back(std::move(*it));
    }
    background_.erase(first, background_.end());
  }
  work_.notify_all();
}

void ReadQueue::Drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  settled_.wait(lock, [this] { return n_owed_ == 0; });
}

void ReadQueue::Close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  work_.notify_all();
}

void ReadQueue::Limit(int depth, int background_depth) {
  const std::lock_guard<std::mutex> lock(mutex_);
  depth_ = depth;
  background_depth_ = background_depth;
}

int ReadQueue::depth() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return depth_;
}

int ReadQueue::background_depth() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return background_depth_;
}

ReaderCounts ReadQueue::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

}  // namespace remoe

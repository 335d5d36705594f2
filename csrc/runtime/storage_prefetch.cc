// The side of the StorageSource that reads what no event has asked for yet.
#include <algorithm>

#include "runtime/storage_source.h"

namespace remoe {

namespace {

// Of a plan that reads several at a time, handed to the reader at once: what is given up before
// costs nothing.
constexpr uint64_t kMostInFlightBytes = 8u << 20;

}  // namespace

SlotLoad StorageSource::load(SlotId slot) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return loads_[slot];
}

void StorageSource::Reserve(SlotId slot, int layer, uint16_t expert) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SlotLoad& load = loads_[slot];
  load = SlotLoad();
  load.state = SlotLoad::State::kPrefetch;
  load.layer = layer;
  load.expert = expert;
  load.waiting = (1u << (*parts_.layers)[layer].matrices.size()) - 1;
}

void StorageSource::Prefetch(const std::vector<SlotId>& slots, PrefetchPriority priority) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.clear();
    priority_ = priority;
  }
  PrefetchMore(slots);
}

void StorageSource::PrefetchMore(const std::vector<SlotId>& slots) {
  std::vector<Read> reads;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const SlotId slot : slots) {
      SlotLoad& load = loads_[slot];
      load.state = SlotLoad::State::kPrefetch;
      if (load.waiting != 0) queue_.push_back(slot);
    }
    TakePrefetchLocked(&reads);
  }
  Submit(reads);
}

int StorageSource::Cancel(const std::vector<SlotId>& slots) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int n = 0;
  for (const SlotId slot : slots) {
    SlotLoad& load = loads_[slot];
    if (load.state != SlotLoad::State::kPrefetch) continue;
    load.state = SlotLoad::State::kCancelled;
    queue_.erase(std::remove(queue_.begin(), queue_.end(), slot), queue_.end());
    n++;
  }
  return n;
}

void StorageSource::StopPrefetch() {
  const std::lock_guard<std::mutex> lock(mutex_);
  queue_.clear();
}

void StorageSource::Await(const std::vector<SlotId>& slots) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] {
    return std::all_of(slots.begin(), slots.end(),
                       [this](SlotId slot) { return loads_[slot].in_flight == 0; });
  });
}

void StorageSource::AwaitReads() {
  std::unique_lock<std::mutex> lock(mutex_);
  // Looked at now and then as well: what an event has taken over ends without a word to us.
  const auto over = [this] { return prefetch_in_flight_ == 0; };
  while (!changed_.wait_for(lock, std::chrono::milliseconds(50), over)) {
  }
}

void StorageSource::Release(SlotId slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  loads_[slot].state = SlotLoad::State::kIdle;
}

// Appends the prefetch reads that may start now: so many bytes of them, or, between the layers of a
// token, one matrix while the device would be idle otherwise.
void StorageSource::TakePrefetchLocked(std::vector<Read>* reads) {
  const bool several = priority_ != PrefetchPriority::kToken;
  if (!several && (unfinished_ > 0 || prefetch_in_flight_ > 0)) return;
  // With events to come, half of the staging is left to their reads.
  const int most_staged = priority_ == PrefetchPriority::kStart
                              ? parts_.staging_buffers
                              : std::max(1, parts_.staging_buffers / 2);
  while (!queue_.empty()) {
    const SlotId slot = queue_.front();
    SlotLoad& load = loads_[slot];
    for (int m = 0; load.waiting >> m != 0 && !load.failed; m++) {
      if ((load.waiting >> m & 1) == 0) continue;
      if (prefetch_in_flight_ > 0 && prefetch_in_flight_bytes_ >= kMostInFlightBytes) return;
      uint8_t* buffer = nullptr;
      if (!layout_.at(load.layer, m).in_place) {
        const bool free = staged_.empty() && prefetch_staged_ < most_staged;
        buffer = free ? parts_.staging->TryTake() : nullptr;
        if (buffer == nullptr) return;
        prefetch_staged_++;
      }
      Read read = MakeRead(slot, m, true);
      if (buffer != nullptr) read.dest = buffer + read.offset % kPage;
      load.waiting &= ~(1u << m);
      load.in_flight |= 1u << m;
      prefetch_in_flight_++;
      prefetch_in_flight_bytes_ += read.n_bytes;
      reads->push_back(read);
      if (!several) return;
    }
    queue_.pop_front();
  }
}

}  // namespace remoe

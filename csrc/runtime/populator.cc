#include "runtime/populator.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/memory_page.h"
#include "base/rounding.h"
#include "base/thread.h"

namespace remoe {

namespace {

// At a time: little enough to be stopped soon, several huge pages.
constexpr uint64_t kStepBytes = 8u << 20;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

}  // namespace

Populator::Populator(uint8_t* data, uint64_t n_bytes, uint64_t next_bytes)
    : data_(data), next_bytes_(next_bytes), limit_(n_bytes) {
  // Without a thread reads wait for their pages, as they do on an older kernel.
  (void)StartThread("populates the cache's memory", [this] { Run(); }, &thread_);
}

Populator::~Populator() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Populator::Used(uint64_t end) {
  if (end <= used_.load(std::memory_order_relaxed)) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    used_ = std::max(end, used_.load());
  }
  changed_.notify_one();
}

void Populator::Limit(uint64_t end) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = end;
    used_ = std::min(used_.load(), end);
    done_ = std::min(done_.load(), end);
  }
  changed_.notify_one();
}

uint64_t Populator::Target() const {
  return std::min(limit_, used_.load() + next_bytes_);
}

void Populator::Run() {
  const sched_param priority{};
  sched_setscheduler(0, SCHED_IDLE, &priority);  // of this thread; refused, it still does no harm
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || done_ < Target(); });
    if (stop_) return;
    // What a read has overtaken is present by now.
    const uint64_t from = RoundDown(std::max(done_.load(), used_.load()), MemoryPageBytes());
    const uint64_t to = std::min(from + kStepBytes, Target());
    done_ = to;
    if (to <= from) continue;
    lock.unlock();
    const bool populated = madvise(data_ + from, to - from, MADV_POPULATE_WRITE) == 0;
    lock.lock();
    if (!populated) return;
    // Shrunk meanwhile: nobody else touches what lies beyond, as long as the mutex is held.
    const uint64_t kept = RoundUp(std::max(from, limit_), MemoryPageBytes());
    if (kept < to) madvise(data_ + kept, to - kept, MADV_DONTNEED);
  }
}

}  // namespace remoe

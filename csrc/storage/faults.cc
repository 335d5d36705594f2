#include "storage/faults.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

namespace remoe {
namespace {

constexpr int kPoison = 0xDB;

// Overwrites what `iovecs` hold in the bytes [begin, end) of their concatenation.
void Poison(const iovec* iovecs, int n_iovecs, uint64_t begin, uint64_t end) {
  uint64_t at = 0;
  for (int i = 0; i < n_iovecs; ++i) {
    const uint64_t length = iovecs[i].iov_len;
    const uint64_t from = std::clamp(begin, at, at + length);
    const uint64_t to = std::clamp(end, at, at + length);
    if (to > from) {
      std::memset(static_cast<uint8_t*>(iovecs[i].iov_base) + (from - at), kPoison, to - from);
    }
    at += length;
  }
}

}  // namespace

bool FaultPlan::empty() const {
  return fail_operation < 0 && range_file < 0 && short_bytes == 0 && interruptions == 0 &&
         delay_us == 0 && truncate_bytes < 0 && enter_failures == 0;
}

void FaultInjector::Set(const FaultPlan& plan) {
  const std::lock_guard<std::mutex> lock(mutex_);
  plan_ = plan;
  n_operations_ = 0;
  n_interrupted_ = 0;
  active_.store(!plan.empty(), std::memory_order_relaxed);
}

int64_t FaultInjector::Apply(int file, uint64_t offset, const iovec* iovecs, int n_iovecs,
                             int64_t result) {
  if (!active_.load(std::memory_order_relaxed)) return result;
  int delay_us = 0;
  int64_t decided = result;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    delay_us = plan_.delay_us;
    decided = Decide(file, offset, result);
  }
  if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
  if (result > 0 && decided < result) {
    const uint64_t kept = decided > 0 ? static_cast<uint64_t>(decided) : 0;
    Poison(iovecs, n_iovecs, kept, static_cast<uint64_t>(result));
  }
  return decided;
}

int FaultInjector::EnterError() {
  if (!active_.load(std::memory_order_relaxed)) return 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (plan_.enter_failures == 0) return 0;
  if (plan_.enter_failures > 0) --plan_.enter_failures;
  return plan_.enter_error;
}

int64_t FaultInjector::Decide(int file, uint64_t offset, int64_t result) {
  if (n_interrupted_ < plan_.interruptions) {
    ++n_interrupted_;
    return -EINTR;
  }
  n_interrupted_ = 0;
  if (n_operations_++ == plan_.fail_operation) return -plan_.error_number;
  if (result <= 0) return result;
  const uint64_t end = offset + static_cast<uint64_t>(result);
  if (file == plan_.range_file && plan_.range_times != 0 &&
      offset < plan_.range_offset + plan_.range_bytes && plan_.range_offset < end) {
    if (plan_.range_times > 0) --plan_.range_times;
    return -plan_.error_number;
  }
  if (plan_.truncate_bytes >= 0) {
    result = std::clamp<int64_t>(plan_.truncate_bytes - static_cast<int64_t>(offset), 0, result);
  }
  if (plan_.short_bytes > 0) {
    result = std::min<int64_t>(result, static_cast<int64_t>(plan_.short_bytes));
  }
  return result;
}

}  // namespace remoe

// Stopwatch: adds the nanoseconds of its life to a total.
//
// For the sums that counts() gives: time in expert FFNs, time for recording. Reading the clock twice
// is all it costs.
//
// Lives in one thread; the total may be shared.
#ifndef REMOE_DEVICE_STOPWATCH_H_
#define REMOE_DEVICE_STOPWATCH_H_

#include <atomic>
#include <chrono>
#include <cstdint>

namespace remoe {

class Stopwatch {
 public:
  // A null total takes nothing.
  explicit Stopwatch(std::atomic<uint64_t>* total) : total_(total) {}
  ~Stopwatch() {
    if (total_ == nullptr) return;
    *total_ += std::chrono::duration_cast<std::chrono::nanoseconds>(
                   std::chrono::steady_clock::now() - start_)
                   .count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<uint64_t>* const total_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace remoe

#endif  // REMOE_DEVICE_STOPWATCH_H_

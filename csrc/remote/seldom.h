// Seldom: when the user should hear again of what may happen all the time.
//
// The first few times at once. What goes on after those would fill a log: then once in a minute at most.
//
// A plain value. One thread at a time.
#ifndef REMOE_REMOTE_SELDOM_H_
#define REMOE_REMOTE_SELDOM_H_

#include <chrono>
#include <cstdint>

namespace remoe {

class Seldom {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr uint64_t kFew = 6;
  static constexpr auto kPause = std::chrono::minutes(1);

  // RETURNS: whether to tell of it now. It counts as told then.
  bool Due(Clock::time_point now) {
    if (n_told_ >= kFew && now - told_ < kPause) return false;
    n_told_++;
    told_ = now;
    return true;
  }

 private:
  uint64_t n_told_ = 0;
  Clock::time_point told_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_SELDOM_H_

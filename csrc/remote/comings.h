// Comings: when the user should hear that a peer has come, or is gone.
//
// At once, as long as that is news. One that comes and goes all the time would fill a log: of it the
// user hears once in a minute at most, how often it was lost and how it stands by then.
//
// One thread at a time.
#ifndef REMOE_REMOTE_COMINGS_H_
#define REMOE_REMOTE_COMINGS_H_

#include <chrono>
#include <cstdint>

namespace remoe {

class Comings {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr uint64_t kFew = 6;  // that are told of at once: three losses, as many returns
  static constexpr auto kPause = std::chrono::minutes(1);

  void Came() { untold_ = true; }
  // `served`: it had come before.
  void Went(bool served) {
    n_lost_ += served ? 1 : 0;
    untold_ |= served || !gone_told_;
    gone_told_ = true;
  }
  uint64_t n_lost() const { return n_lost_; }
  // RETURNS: whether the user should hear now how it stands.
  bool Due(Clock::time_point now) {
    if (!untold_ || (n_told_ >= kFew && now - told_ < kPause)) return false;
    untold_ = false;
    n_told_++;
    told_ = now;
    return true;
  }

 private:
  bool untold_ = false, gone_told_ = false;
  uint64_t n_lost_ = 0, n_told_ = 0;
  Clock::time_point told_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_COMINGS_H_

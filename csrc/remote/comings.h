// Comings: when the user should hear that a peer has come, or is gone.
//
// At once, as long as that is news. One that comes and goes all the time would fill a log: of it the
// user hears once in a minute at most, how often it was lost and how it stands by then.
//
// One thread at a time.
#ifndef REMOE_REMOTE_COMINGS_H_
#define REMOE_REMOTE_COMINGS_H_

#include <cstdint>

#include "remote/seldom.h"

namespace remoe {

class Comings {
 public:
  using Clock = Seldom::Clock;
  static constexpr uint64_t kFew = Seldom::kFew;  // three losses, as many returns
  static constexpr auto kPause = Seldom::kPause;

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
    if (!untold_ || !seldom_.Due(now)) return false;
    untold_ = false;
    return true;
  }

 private:
  bool untold_ = false, gone_told_ = false;
  uint64_t n_lost_ = 0;
  Seldom seldom_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_COMINGS_H_

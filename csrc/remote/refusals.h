// Refusals: which of the engines that a worker refuses its user hears of.
//
// The first few at once. Whoever knocks again and again, an engine of another program version or a port
// scanner, would fill a log: after those, the user hears of one in a minute, and how many were left out.
//
// A plain value. One thread at a time.
#ifndef REMOE_REMOTE_REFUSALS_H_
#define REMOE_REMOTE_REFUSALS_H_

#include <chrono>
#include <string>

#include "base/format.h"

namespace remoe {

class Refusals {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int kFew = 6;
  static constexpr auto kPause = std::chrono::minutes(1);

  // RETURNS: the line about one more; empty where the user should not hear of it now.
  std::string Line(const std::string& why, Clock::time_point now) {
    if (n_told_ >= kFew && now - told_ < kPause) {
      n_left_out_++;
      return "";
    }
    const std::string others =
        n_left_out_ > 0 ? Format(" (%llu others since the last line)", n_left_out_) : "";
    n_told_++;
    told_ = now;
    n_left_out_ = 0;
    return "an engine was refused: " + why + others;
  }

 private:
  int n_told_ = 0;
  unsigned long long n_left_out_ = 0;
  Clock::time_point told_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_REFUSALS_H_

// Refusals: which of the engines that a worker refuses its user hears of.
//
// Whoever knocks again and again, an engine of another program version or a port scanner, would fill a
// log: after the first few, the user hears of one in a minute, and how many were left out.
//
// A plain value. One thread at a time.
#ifndef REMOE_REMOTE_REFUSALS_H_
#define REMOE_REMOTE_REFUSALS_H_

#include <string>

#include "base/format.h"
#include "remote/seldom.h"

namespace remoe {

class Refusals {
 public:
  using Clock = Seldom::Clock;

  // RETURNS: the line about one more; empty where the user should not hear of it now.
  std::string Line(const std::string& why, Clock::time_point now) {
    if (!seldom_.Due(now)) {
      n_left_out_++;
      return "";
    }
    const std::string others =
        n_left_out_ > 0 ? Format(" (%llu others since the last line)", n_left_out_) : "";
    n_left_out_ = 0;
    return "an engine was refused: " + why + others;
  }

 private:
  Seldom seldom_;
  unsigned long long n_left_out_ = 0;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_REFUSALS_H_

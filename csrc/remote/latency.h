// Latency: how long a peer's answers take, and from when on one counts as late.
//
// The running 95th percentile of the last answers, within bounds; until there are enough of them,
// a multiple of the slowest. Answers that came late are counted like any other, so that a peer that
// has become slower is waited for a little longer, and no answer is given up for ever.
//
// One thread at a time.
#ifndef REMOE_REMOTE_LATENCY_H_
#define REMOE_REMOTE_LATENCY_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace remoe {

class Latency {
 public:
  void Add(int64_t us) {
    if (last_.size() < kKept) {
      last_.push_back(us);
    } else {
      last_[next_] = us;
    }
    next_ = (next_ + 1) % kKept;
    late_us_ = 0;
  }
  int64_t late_us() {
    if (late_us_ == 0) late_us_ = std::clamp(Percentile(), kLeastUs, kMostUs);
    return late_us_;
  }

 private:
  static constexpr size_t kKept = 64, kEnough = 16;
  static constexpr int64_t kLeastUs = 500, kMostUs = 1000000, kUnknownUs = 50000;

  int64_t Percentile() const {
    if (last_.empty()) return kUnknownUs;
    std::vector<int64_t> sorted = last_;
    if (sorted.size() < kEnough) return 4 * *std::max_element(sorted.begin(), sorted.end());
    const size_t at = sorted.size() * 95 / 100;
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(at),
                     sorted.end());
    return sorted[at];
  }

  std::vector<int64_t> last_;
  size_t next_ = 0;
  int64_t late_us_ = 0;  // 0: to be found anew
};

}  // namespace remoe

#endif  // REMOE_REMOTE_LATENCY_H_

// Latency: how long a peer's answers take, and from when on one counts as late.
//
// Late is what takes longer than 95 of the last 100 answers, and no more than four times the middle
// one: a few that come very late must not have all others waited for. Until there are enough
// answers, it is four times the slowest. Answers that came late are counted like any other, so that
// a peer that has become slower is waited for a little longer, and no answer is given up for ever.
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
  static constexpr int64_t kLeastUs = 500, kMostUs = 1000000;

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
    if (late_us_ == 0) Update();
    return late_us_;
  }
  // Of the last answers; 0 while there are few.
  int64_t middle_us() {
    if (late_us_ == 0) Update();
    return middle_us_;
  }

 private:
  static constexpr size_t kKept = 64, kEnough = 16;
  static constexpr int64_t kUnknownUs = 50000;

  void Update() {
    std::vector<int64_t> sorted = last_;
    std::sort(sorted.begin(), sorted.end());
    int64_t late = kUnknownUs;
    middle_us_ = 0;
    if (sorted.size() >= kEnough) {
      middle_us_ = sorted[sorted.size() / 2];
      late = std::min(sorted[sorted.size() * 95 / 100], 4 * middle_us_);
    } else if (!sorted.empty()) {
      late = 4 * sorted.back();
    }
    late_us_ = std::clamp(late, kLeastUs, kMostUs);
  }

  std::vector<int64_t> last_;
  size_t next_ = 0;
  int64_t late_us_ = 0, middle_us_ = 0;  // late_us_ 0: to be found anew
};

}  // namespace remoe

#endif  // REMOE_REMOTE_LATENCY_H_

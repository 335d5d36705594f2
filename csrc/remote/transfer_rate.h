// TransferRate: how many bytes a second a way gives, measured on what goes over it anyway.
//
// A running mean over transfers that are large enough to say something. What a way could give, and
// not what was asked of it: a transfer's time is that from its beginning to its end.
//
// Any thread: one number, written and read whole.
#ifndef REMOE_REMOTE_TRANSFER_RATE_H_
#define REMOE_REMOTE_TRANSFER_RATE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace remoe {

class TransferRate {
 public:
  static constexpr uint64_t kLeastBytes = 16 << 10;

  void Add(uint64_t n_bytes, int64_t us) {
    if (n_bytes < kLeastBytes) return;
    const double now =
        static_cast<double>(n_bytes) * 1e6 / static_cast<double>(std::max<int64_t>(us, 1));
    const double before = bytes_per_s_;
    bytes_per_s_ = before == 0 ? now : kKept * before + (1 - kKept) * now;
  }
  // 0 while nothing was measured.
  double bytes_per_s() const { return bytes_per_s_; }

 private:
  static constexpr double kKept = 0.8;
  std::atomic<double> bytes_per_s_{0};
};

}  // namespace remoe

#endif  // REMOE_REMOTE_TRANSFER_RATE_H_

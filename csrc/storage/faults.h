// Faults: what a storage stack can do to a reader, on demand. A FaultPlan says what goes wrong; the
// FaultInjector turns the result of an operation that went well into one that did not. It sits
// below the retry logic of every backend (on the result of preadv, and on io_uring's completions),
// so that a test meets the code that a failing disk would meet. Bytes that a shortened or failed
// operation no longer delivers are overwritten, so that nobody can rely on them by accident.
//
// Thread-safe. Costs one relaxed atomic load while the plan is empty.
#ifndef REMOE_STORAGE_FAULTS_H_
#define REMOE_STORAGE_FAULTS_H_

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace remoe {

struct FaultPlan {
  // The operation with this number (from 0) fails with error_number; and so does every operation
  // that touches the file range, the first `range_times` times (-1: always).
  int64_t fail_operation = -1;
  int range_file = -1;        // -1: no range
  uint64_t range_offset = 0;  // bytes
  uint64_t range_bytes = 0;
  int range_times = -1;
  int error_number = 5;  // EIO

  uint64_t short_bytes = 0;  // an operation delivers at most this much; 0: all
  int interruptions = 0;  // EINTR comes this many times before each operation that is let through
  int delay_us = 0;       // before every result
  int64_t truncate_bytes = -1;  // every file seems to end here; -1: where it ends

  int enter_error = 0;     // io_uring takes no requests: entering it fails with this errno
  int enter_failures = 0;  // that many times; -1: always

  bool refuse_direct = false;  // at open: as on a file system without O_DIRECT
  bool refuse_uring = false;   // at open: as in a container that forbids io_uring

  bool empty() const;  // nothing to inject once open
};

class FaultInjector {
 public:
  explicit FaultInjector(const FaultPlan& plan) { Set(plan); }

  void Set(const FaultPlan& plan);

  // `result`: bytes moved, or -errno, by an operation on `file` at `offset` into `iovecs`. Returns
  // the result to be believed.
  int64_t Apply(int file, uint64_t offset, const iovec* iovecs, int n_iovecs, int64_t result);
  // The errno with which entering io_uring fails now; 0: it is to be entered.
  int EnterError();

 private:
  int64_t Decide(int file, uint64_t offset, int64_t result);

  std::atomic<bool> active_{false};
  std::mutex mutex_;
  FaultPlan plan_;  // guarded by mutex_, as all below
  int64_t n_operations_ = 0;
  int n_interrupted_ = 0;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_FAULTS_H_

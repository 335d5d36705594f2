// UringRing: the kernel's io_uring, by its documented interface (linux/io_uring.h): two rings in
// memory that it shares with us, and the calls to set them up and to enter. Nothing but the
// kernel's headers is needed. A ring is handed out only once a request has gone through it, since a
// container may allow the set-up and forbid the entering.
//
// Owns the descriptor and the mappings. The submission side (Prepare..., Submit, TakeBack) belongs
// to one thread at a time, and so does the completion side; the two may run side by side. What the
// kernel writes is read with acquire, what it reads is written with release.
#ifndef REMOE_STORAGE_URING_RING_H_
#define REMOE_STORAGE_URING_RING_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"

struct io_uring_cqe;
struct io_uring_params;
struct io_uring_sqe;

namespace remoe {

class UringRing {
 public:
  struct Completion {
    void* data = nullptr;  // as it was prepared
    int64_t result = 0;    // bytes moved, or -errno
  };

  // A ring for `n_entries` requests at a time; kNotSupported with the reason.
  static Result<std::unique_ptr<UringRing>> Open(int n_entries);
  ~UringRing();
  UringRing(const UringRing&) = delete;
  UringRing& operator=(const UringRing&) = delete;

  // Lets requests name files by their index in `descriptors`. 0, or the errno of the refusal.
  int RegisterFiles(const std::vector<int>& descriptors);

  // Writes a request into the submission ring; `data` comes back with its completion. `iovecs` must
  // live until then. `fd` is an index if files were registered.
  // REQUIRES: at most n_entries requests are prepared or in flight.
  void PrepareRead(int fd, const iovec* iovecs, int n_iovecs, uint64_t offset, void* data);

  // Requests that were prepared and that the kernel has not taken.
  unsigned n_prepared() const;
  // Offers these to the kernel, in one call: how many it took, or -errno. The rest stays prepared.
  int Submit();
  // Withdraws them, and returns their data: the kernel never sees them.
  std::vector<void*> TakeBack();

  // Takes the next completion out of the ring; false if there is none.
  bool PopCompletion(Completion* completion);
  // Readable by poll() while there are completions.
  int fd() const { return fd_; }

 private:
  UringRing() = default;
  int Map(const io_uring_params& params);  // 0 or errno
  int Prove();                             // 0 or errno
  io_uring_sqe* NextEntry();

  struct Mapping {
    void* data = nullptr;
    size_t n_bytes = 0;
  };

  int fd_ = -1;
  bool registered_ = false;
  Mapping rings_;
  Mapping entries_;
  // Inside the mappings. Ours to write: the submission tail, the completion head; the kernel's: the
  // others.
  unsigned* submission_head_ = nullptr;
  unsigned* submission_tail_ = nullptr;
  unsigned* submission_flags_ = nullptr;
  unsigned* submission_index_ = nullptr;
  unsigned submission_mask_ = 0;
  io_uring_sqe* submissions_ = nullptr;
  unsigned* completion_head_ = nullptr;
  unsigned* completion_tail_ = nullptr;
  unsigned completion_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_URING_RING_H_

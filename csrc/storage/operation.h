// Operation: one request made of the system: a span of one file and the buffers it lands in. A
// batch of reads is cut into pieces, so that lanes share a long one, and pieces that meet at a page
// boundary are joined into one operation with several buffers; a read is done when every operation
// that carries a part of it is. Advance() is the retry logic of all backends: it judges the result
// of one attempt.
//
// Plain values, owned by one thread at a time; a Batch's fields are guarded by the queue's mutex.
#ifndef REMOE_STORAGE_OPERATION_H_
#define REMOE_STORAGE_OPERATION_H_

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "storage/open_file.h"
#include "storage/reader.h"

namespace remoe {

// The reads of one Submit.
struct Batch {
  struct Item {
    Read read;
    int n_pending = 0;  // operations that still carry a part of it
    Status status;      // the first failure
  };
  ReadDone done;
  std::vector<Item> items;
};

class Operation {
 public:
  enum class Next { kAgain, kDone };

  // REQUIRES: `end` lies beyond `offset`. Both are rounded to pages when the file is read directly.
  Operation(std::shared_ptr<Batch> batch, int item, uint64_t offset, uint64_t end, bool direct);
  // An operation that has failed before it started, so that its read fails on an I/O thread like
  // others.
  Operation(std::shared_ptr<Batch> batch, int item, Status failure);

  // Appends `next`, which starts at the page boundary where this one ends.
  void Join(const Operation& next);

  // Judges one attempt: `result` is the bytes moved, or -errno.
  Next Advance(int64_t result, const OpenFile& file);
  // Ends it without an attempt: `why` and error_number say what was in the way.
  void Refuse(const OpenFile& file, const char* why, int error_number);

  // The next attempt.
  uint64_t offset() const { return offset_; }
  const iovec* iovecs() const { return iovecs_.data() + first_iovec_; }
  int n_iovecs() const { return static_cast<int>(iovecs_.size() - first_iovec_); }

  const std::shared_ptr<Batch>& batch() const { return batch_; }
  const std::vector<int>& items() const { return items_; }
  int file() const { return batch_->items[static_cast<size_t>(items_.front())].read.file; }
  bool background() const { return background_; }
  void set_background(bool background) { background_ = background; }
  uint64_t end() const { return end_; }  // of the bytes that are wanted
  const Status& status() const { return status_; }
  uint64_t moved_bytes() const { return moved_bytes_; }
  uint64_t n_attempts() const { return n_attempts_; }

 private:
  Next Fail(Status status);
  void Consume(uint64_t n_bytes);

  std::shared_ptr<Batch> batch_;
  std::vector<int> items_;  // of the batch, of which this carries parts
  std::vector<iovec> iovecs_;
  size_t first_iovec_ = 0;
  uint64_t offset_ = 0;  // of the next attempt
  uint64_t end_ = 0;
  uint64_t moved_bytes_ = 0;
  uint64_t n_attempts_ = 0;
  int n_stalls_ = 0;  // attempts in a row that got nowhere
  bool direct_ = false;
  bool background_ = false;
  Status status_;
};

// Cuts and joins the reads of `batch` and sets each item's n_pending. In the order of the reads;
// reads that make no sense become failed operations.
std::vector<std::unique_ptr<Operation>> PlanOperations(const std::shared_ptr<Batch>& batch,
                                                       const std::vector<OpenFile>& files,
                                                       uint64_t piece_bytes);

}  // namespace remoe

#endif  // REMOE_STORAGE_OPERATION_H_

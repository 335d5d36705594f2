// Reader: many reads in flight against a set of open files, completed on the reader's own threads.
//
// Submit() returns at once; `done` is called exactly once for each read, on an I/O thread, in any
// order, several at a time. Reads land in place: the caller's buffer is congruent to the file (dest
// % kPage == offset % kPage) and the caller owns the bytes from dest rounded down to kPage up to
// dest + n_bytes rounded up, which O_DIRECT may overwrite. EINTR and short reads are finished by
// the reader; a file that ends early is kIo naming path and offset.
//
// Thread-safe: any method from any thread; `done` may Submit, but not Drain. The destructor drops
// background reads that have not started and waits for the rest.
#ifndef REMOE_STORAGE_READER_H_
#define REMOE_STORAGE_READER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "storage/faults.h"

namespace remoe {

constexpr uint64_t kPage = 4096;

struct Read {
  int file = 0;         // index into the reader's files
  uint64_t offset = 0;  // bytes
  uint64_t n_bytes = 0;
  uint8_t* dest = nullptr;
  uint64_t tag = 0;         // the caller's
  bool background = false;  // starts only while no demand read waits; see CancelBackground
};

using ReadDone = std::function<void(const Read&, const Status&)>;

struct ReaderOptions {
  std::string backend =
      "auto";  // "auto", "io_uring" or "pread"; a named one that is missing is an error
  bool direct =
      true;       // try O_DIRECT; where the file system refuses: buffered, cache dropped behind
  int depth = 0;  // demand reads in flight; 0: the default of the backend
  int background_depth = 2;        // background reads in flight, beside those
  uint64_t piece_bytes = 1 << 20;  // a longer read is shared out in pieces, a multiple of kPage
  uint64_t proof_offset =
      0;             // of the page that proves O_DIRECT, in every file; a multiple of kPage
  FaultPlan faults;  // tests only
};

struct ReaderCounts {
  uint64_t reads = 0;         // completed requests
  uint64_t bytes = 0;         // asked for and delivered
  uint64_t device_bytes = 0;  // moved, with the rounding to pages and what was moved again
  uint64_t errors = 0;
  uint64_t operations =
      0;  // requests made of the system after joining and cutting, retries included
  uint64_t cancelled = 0;         // background reads dropped; neither reads nor errors
  uint64_t background_bytes = 0;  // those of `bytes` that were read in the background
};

class Reader {
 public:
  virtual ~Reader() = default;
  // Reads of one call whose spans meet at a page boundary travel together.
  virtual void Submit(const Read* reads, int n, const ReadDone& done) = 0;
  // Blocks until nothing is in flight or queued, and every `done` has returned.
  virtual void Drain() = 0;
  // Drops what background reads have not started, and returns the number of reads that this ends.
  // `done` is called with kCancelled: by the calling thread, before this returns, for a read of
  // which nothing has started; by an I/O thread, later, for one that is half in flight.
  virtual int CancelBackground() = 0;
  // Turns the background reads with this tag into demand reads: now somebody waits for them.
  virtual void Promote(uint64_t tag) = 0;
  // kIo naming the file if one was replaced or modified since it was opened. Costs two system calls
  // a file.
  virtual Status CheckUnchanged() const = 0;
  // Tests only: replaces the plan of the options and starts its counting anew.
  virtual void SetFaults(const FaultPlan& plan) = 0;
  virtual const char* backend() const = 0;  // "io_uring", "pread", ...
  virtual bool direct() const = 0;          // O_DIRECT proven by a test read on every file
  virtual int depth() const = 0;
  virtual ReaderCounts counts() const = 0;
  // One line for each thing that was wished for and is not so ("O_DIRECT refused by PATH: ...").
  virtual std::vector<std::string> notes() const = 0;
};

// Opens `paths` and starts the reader. Fails with kIo naming the path that cannot be opened or
// read.
Result<std::unique_ptr<Reader>> OpenReader(const std::vector<std::string>& paths,
                                           const ReaderOptions& options);

}  // namespace remoe

#endif  // REMOE_STORAGE_READER_H_

// Reader: many reads in flight against a set of open files, completed on the reader's own threads.
//
// Submit() returns at once; `done` is called exactly once for each read, on an I/O thread, in any order.
// Reads land in place: the caller's buffer is congruent to the file (dest % kPage == offset % kPage)
// and the caller owns the bytes from dest rounded down to kPage up to dest + n_bytes rounded up, which
// O_DIRECT may overwrite. EINTR and short reads are finished by the reader; a file that ends early is
// kIo naming path and offset.
//
// Thread-safe: Submit from any thread. The destructor waits for what is in flight.
#ifndef REMOE_STORAGE_READER_H_
#define REMOE_STORAGE_READER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

constexpr uint64_t kPage = 4096;

struct Read {
  int file = 0;          // index into the reader's files
  uint64_t offset = 0;   // bytes
  uint64_t n_bytes = 0;
  uint8_t* dest = nullptr;
  uint64_t tag = 0;      // the caller's
};

using ReadDone = std::function<void(const Read&, const Status&)>;

struct ReaderOptions {
  std::string backend = "auto";  // "auto", "io_uring" or "pread"; a named one that is missing is an error
  bool direct = true;            // try O_DIRECT; where the file system refuses: buffered, cache dropped behind
  int depth = 0;                 // reads in flight; 0: the default of the backend, or what a probe chose
};

struct ReaderCounts {
  uint64_t reads = 0;         // completed requests
  uint64_t bytes = 0;         // asked for and delivered
  uint64_t device_bytes = 0;  // moved, with the rounding to pages
  uint64_t errors = 0;
};

class Reader {
 public:
  virtual ~Reader() = default;
  virtual void Submit(const Read* reads, int n, const ReadDone& done) = 0;
  // Blocks until nothing is in flight.
  virtual void Drain() = 0;
  virtual const char* backend() const = 0;  // "io_uring", "pread", ...
  virtual bool direct() const = 0;          // O_DIRECT proven by a test read on every file
  virtual int depth() const = 0;
  virtual ReaderCounts counts() const = 0;
  // One line for each thing that was wished for and is not so ("O_DIRECT refused by PATH: ...").
  virtual std::vector<std::string> notes() const = 0;
};

// Opens `paths` and starts the reader. Fails with kIo naming the path that cannot be opened or read.
Result<std::unique_ptr<Reader>> OpenReader(const std::vector<std::string>& paths,
                                           const ReaderOptions& options);

}  // namespace remoe

#endif  // REMOE_STORAGE_READER_H_

// What the tests of readers share: files of known bytes, the reads of them, and what came of each, for every
// reader and way of reading that this machine has.
//
// A TempFile lies in the working folder and goes with the object. A Plan owns the buffers that its
// reads land in, and must outlive them. Not synchronised, but for Outcome, whose sink may be called
// by several threads at once.
#ifndef REMOE_STORAGE_TESTING_READS_H_
#define REMOE_STORAGE_TESTING_READS_H_

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "storage/reader.h"
#include "testing/check.h"

namespace remoe {

// A byte that depends on where it lies and on which file, so that a shifted read cannot look right.
inline uint8_t ByteAt(int file, uint64_t offset) {
  uint64_t x =
      (offset + 1) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(file) * 0xBF58476D1CE4E5B9u;
  x ^= x >> 29;
  return static_cast<uint8_t>(x * 0x94D049BB133111EBu >> 56);
}

constexpr uint64_t kPiece = 256 * 1024;
constexpr uint64_t kFileBytes = 5 * kPiece + 1234;  // an unaligned tail

inline const std::vector<uint8_t>& Content(int file) {
  static const auto contents = [] {
    std::vector<std::vector<uint8_t>> made(2, std::vector<uint8_t>(kFileBytes));
    for (int i = 0; i < 2; ++i) {
      for (uint64_t at = 0; at < kFileBytes; ++at) made[static_cast<size_t>(i)][at] = ByteAt(i, at);
    }
    return made;
  }();
  return contents[static_cast<size_t>(file)];
}

class TempFile {
 public:
  TempFile(int index, uint64_t n_bytes) {
    char path[] = "reader_test_XXXXXX";
    const int fd = ::mkstemp(path);
    path_ = path;
    if (::write(fd, Content(index).data(), n_bytes) != static_cast<ssize_t>(n_bytes)) std::abort();
    ::close(fd);
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A buffer congruent to `offset`, with the pages around it that a direct read may overwrite.
class Buffer {
 public:
  Buffer(uint64_t offset, uint64_t n_bytes) {
    const uint64_t size = (offset % kPage + n_bytes + kPage - 1) / kPage * kPage;
    base_.reset(static_cast<uint8_t*>(std::aligned_alloc(kPage, size)));
    std::memset(base_.get(), 0xEE, size);
    dest_ = base_.get() + offset % kPage;
  }
  uint8_t* dest() const { return dest_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> base_;
  uint8_t* dest_;
};

struct Outcome {
  std::mutex mutex;
  std::map<uint64_t, std::vector<Status>> by_tag;

  ReadDone Sink() {
    return [this](const Read& read, const Status& status) {
      const std::lock_guard<std::mutex> lock(mutex);
      by_tag[read.tag].push_back(status);
    };
  }
  // Every tag below n was called back exactly once.
  bool EachOnce(uint64_t n) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (by_tag.size() != n) return false;
    return std::all_of(by_tag.begin(), by_tag.end(), [n](const auto& entry) {
      return entry.first < n && entry.second.size() == 1;
    });
  }
  const Status& at(uint64_t tag) { return by_tag[tag].front(); }
};

inline bool Right(const Read& read) {
  return std::memcmp(read.dest, Content(read.file).data() + read.offset, read.n_bytes) == 0;
}

struct Mode {
  const char* backend;
  bool direct;
};

// What is built in and allowed here: buffered and, where the working directory takes it, direct.
inline std::vector<Mode> Modes() {
  std::vector<Mode> modes;
  for (const char* backend : {"pread", "io_uring"}) {
    TempFile file(0, 8192);
    ReaderOptions options;
    options.backend = backend;
    const auto reader = OpenReader({file.path()}, options);
    if (!reader.ok()) {
      std::printf("left out: %s\n", reader.status().message().c_str());
      continue;
    }
    modes.push_back({backend, false});
    if (reader.value()->direct()) {
      modes.push_back({backend, true});
    } else {
      std::printf("left out: %s with O_DIRECT\n", backend);
    }
  }
  return modes;
}

inline ReaderOptions OptionsOf(const Mode& mode) {
  ReaderOptions options;
  options.backend = mode.backend;
  options.direct = mode.direct;
  options.piece_bytes = kPiece;
  return options;
}

inline std::unique_ptr<Reader> Open(const std::vector<std::string>& paths,
                                    const ReaderOptions& options) {
  auto reader = OpenReader(paths, options);
  if (!reader.ok()) {
    std::fprintf(stderr, "%s\n", reader.status().message().c_str());
    std::abort();
  }
  return std::move(reader.value());
}

struct Request {
  int file;
  uint64_t offset;
  uint64_t n_bytes;
};

class Plan {
 public:
  explicit Plan(const std::vector<Request>& requests, bool background = false) {
    for (const Request& request : requests) {
      buffers_.push_back(std::make_unique<Buffer>(request.offset, request.n_bytes));
      Read read;
      read.file = request.file;
      read.offset = request.offset;
      read.n_bytes = request.n_bytes;
      read.dest = buffers_.back()->dest();
      read.tag = reads_.size();
      read.background = background;
      reads_.push_back(read);
    }
  }
  std::vector<Read>& reads() { return reads_; }
  int size() const { return static_cast<int>(reads_.size()); }

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Read> reads_;
};

inline const std::vector<Request>& OddRequests() {
  static const std::vector<Request> requests = {{0, 0, 1},
                                                {0, 0, 4096},
                                                {0, 4095, 2},
                                                {0, 1, 4096},
                                                {1, 12345, 70000},
                                                {0, 4096, 65536},
                                                {1, 0, kFileBytes},
                                                {0, kFileBytes - 1, 1},
                                                {0, 99, 700000},
                                                {1, 8191, 1},
                                                {0, kFileBytes - 5000, 5000},
                                                {0, kPiece, kPiece},
                                                {1, kPiece + 17, 2 * kPiece + 4079},
                                                {0, kFileBytes - 4096, 4096}};
  return requests;
}

inline void CheckAllRight(Reader& reader, const std::vector<Request>& requests) {
  Plan plan(requests);
  Outcome outcome;
  reader.Submit(plan.reads().data(), plan.size(), outcome.Sink());
  reader.Drain();
  CHECK(outcome.EachOnce(plan.reads().size()));
  for (const Read& read : plan.reads()) {
    CHECK_OK(outcome.at(read.tag));
    CHECK(Right(read));
  }
}

// One read after another, so that each is an operation of its own.
inline Status ReadOne(Reader& reader, Plan& plan, size_t index) {
  Outcome outcome;
  reader.Submit(&plan.reads()[index], 1, outcome.Sink());
  reader.Drain();
  return outcome.at(plan.reads()[index].tag);
}

}  // namespace remoe

#endif  // REMOE_STORAGE_TESTING_READS_H_

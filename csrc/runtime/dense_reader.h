// DenseReader: reads long spans in order through a Reader, several chunks in flight, into any
// memory.
//
// For the dense weights at load: O_DIRECT wants aligned memory and llama.cpp gives what it has, so
// chunks pass through a small ring of aligned buffers. The next chunks of a span are already being
// read while one is copied out. Single-threaded; the Reader outlives it.
#ifndef REMOE_RUNTIME_DENSE_READER_H_
#define REMOE_RUNTIME_DENSE_READER_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "runtime/staging.h"
#include "storage/reader.h"

namespace remoe {

class DenseReader {
 public:
  static Result<std::unique_ptr<DenseReader>> Make(Reader* reader);
  Status ReadAt(int file, uint64_t offset, uint64_t n_bytes, uint8_t* dest);

 private:
  explicit DenseReader(Reader* reader) : reader_(reader) {}
  struct Chunk {
    bool done = false;
    Status status;
  };
  Reader* reader_;
  std::unique_ptr<Staging> ring_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Chunk> chunks_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_DENSE_READER_H_

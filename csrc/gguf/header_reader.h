// HeaderReader: the front part of a GGUF file, read forwards, every step checked against the file's
// end.
//
// Holds what it has read so far in memory, growing as the parse advances and never beyond
// kMaxHeaderBytes, so that a count or a length in the file cannot make it allocate more than the
// file really has to offer. Opens regular files only; a directory, FIFO or device is refused
// without blocking.
//
// Owns its descriptor. Single-threaded.
#ifndef REMOE_GGUF_HEADER_READER_H_
#define REMOE_GGUF_HEADER_READER_H_

#include <cstdint>
#include <string>

#include "base/status.h"

namespace remoe {

// Headers of the largest vocabularies known take less than 20 MiB.
constexpr uint64_t kMaxHeaderBytes = 64ull << 20;

// `text` from a file, fit for a message: printable ASCII in quotes, cut after 80 characters.
std::string Quote(const std::string& text);

class HeaderReader {
 public:
  static Result<HeaderReader> Open(const std::string& path);
  HeaderReader(HeaderReader&& other) noexcept;
  HeaderReader& operator=(HeaderReader&&) = delete;
  ~HeaderReader();

  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t position() const { return position_; }

  // `what` names the field in messages.
  Status U32(const char* what, uint32_t* value);
  Status U64(const char* what, uint64_t* value);
  // REQUIRES: max_bytes <= kMaxHeaderBytes.
  Status String(const char* what, uint64_t max_bytes, std::string* value);
  Status Skip(const char* what, uint64_t n_bytes);

  // kCorrupt, naming the path, the current position and `problem`.
  Status Corrupt(const std::string& problem) const;

  // Hands over [begin, end) of what was read; the reader is of no further use.
  // REQUIRES: begin <= end <= position().
  std::string Take(uint64_t begin, uint64_t end);

 private:
  HeaderReader() = default;
  // Makes the n bytes at position() present in bytes_.
  Status Need(const char* what, uint64_t n);

  std::string path_;
  int fd_ = -1;
  uint64_t file_bytes_ = 0;
  uint64_t position_ = 0;
  std::string bytes_;  // [0, bytes_.size()) of the file
};

}  // namespace remoe

#endif  // REMOE_GGUF_HEADER_READER_H_

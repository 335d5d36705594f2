// VirtualFile: the model as llama.cpp is made to see it, as a stdio stream: one GGUF with a new
// header, dense tensors read through from the shards, tuned routers over the file's own, and expert
// matrices that are announced whole and cost nothing to read. virtual_file.cc says how.
//
// Dense bytes are read by `ReadAt`, which the caller supplies, and are counted. A read of an
// expert's bytes is an error, never wrong bytes. The first failure is kept in status(), since stdio
// can only say "error".
//
// One stream per VirtualFile, used by one thread; the VirtualFile outlives the stream, and stays in
// its place while the stream is open.
#ifndef REMOE_GGUF_VIRTUAL_FILE_H_
#define REMOE_GGUF_VIRTUAL_FILE_H_

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "gguf/model_file.h"

namespace remoe {

using ReadAt = std::function<Status(int shard, uint64_t offset, uint64_t n_bytes, uint8_t* dest)>;

// Bytes that stand in for a tensor's own; same type and shape. REQUIRES: bytes.size() ==
// tensor.n_bytes.
using Overlay = std::map<std::string, std::vector<uint8_t>>;

class VirtualFile {
 public:
  // `model` and what ReadAt needs outlive this. Fails with kInvalidArgument when an overlay names a
  // tensor that the model lacks or whose size differs.
  static Result<VirtualFile> Make(const ModelFile* model, Overlay overlay, ReadAt read_at);

  // A seekable read-only stream over the virtual bytes; the caller closes it.
  Result<std::FILE*> OpenStream();
  static constexpr uint64_t kStreamBufferBytes = 4 << 20;

  uint64_t size() const { return size_; }
  uint64_t dense_bytes_read() const { return dense_bytes_read_; }
  uint64_t expert_bytes_skipped() const { return expert_bytes_skipped_; }
  const Status& status() const { return status_; }

  // Copies [offset, offset + n) of the virtual file to dest, leaving it alone where expert bytes
  // would go. RETURNS: bytes covered (less than n at the end of the file), or -1 after a failure
  // kept in status().
  int64_t Pread(uint64_t offset, uint8_t* dest, uint64_t n);

 private:
  VirtualFile() = default;
  struct Span {
    uint64_t begin = 0;  // virtual
    uint64_t n_bytes = 0;
    enum Kind { kHeader, kDense, kExpert, kOverlay } kind = kHeader;
    int shard = 0;
    uint64_t offset = 0;             // in the shard
    const uint8_t* bytes = nullptr;  // overlay
  };
  struct Cookie;  // the stream's side
  const Span& SpanAt(uint64_t offset) const;

  const ModelFile* model_ = nullptr;
  Overlay overlay_;
  ReadAt read_at_;
  std::string header_;
  std::vector<Span> spans_;  // sorted by begin, the first at 0; gaps read as zeros
  std::vector<char> stream_buffer_;
  uint64_t size_ = 0;
  uint64_t dense_bytes_read_ = 0;
  uint64_t expert_bytes_skipped_ = 0;
  Status status_;
};

}  // namespace remoe

#endif  // REMOE_GGUF_VIRTUAL_FILE_H_

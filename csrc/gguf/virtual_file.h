// VirtualFile: the model as llama.cpp is made to see it: one GGUF, as a stdio stream, with a header
// written anew, dense tensors read through from the shards, tuned routers laid over the file's own, and
// expert matrices that take no bytes: a read inside one returns at once and leaves the buffer alone.
//
// Reads of dense bytes go through `ReadAt`, which the caller supplies (O_DIRECT, progress, faults), and
// are counted. The first failure is kept in status(), since stdio can only say "error".
//
// One stream per VirtualFile, used by one thread; the VirtualFile outlives the stream.
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

// Bytes that stand in for a tensor's own; same type and shape. REQUIRES: bytes.size() == tensor.n_bytes.
using Overlay = std::map<std::string, std::vector<uint8_t>>;

class VirtualFile {
 public:
  // `model` and what ReadAt needs outlive this. Fails with kInvalidArgument when an overlay names a tensor
  // that the model lacks or whose size differs.
  static Result<VirtualFile> Make(const ModelFile* model, Overlay overlay, ReadAt read_at);

  // A seekable read-only stream over the virtual bytes; the caller closes it.
  Result<std::FILE*> OpenStream();

  uint64_t size() const { return size_; }
  uint64_t dense_bytes_read() const { return dense_bytes_read_; }
  uint64_t expert_bytes_skipped() const { return expert_bytes_skipped_; }
  const Status& status() const { return status_; }

  // Copies [offset, offset + n) of the virtual file to dest, skipping expert bytes. RETURNS: bytes
  // covered (less than n at the end of the file), or -1 after a failure kept in status().
  int64_t Pread(uint64_t offset, uint8_t* dest, uint64_t n);

 private:
  VirtualFile() = default;
  struct Span {
    uint64_t begin = 0;           // virtual
    uint64_t n_bytes = 0;
    enum Kind { kHeader, kDense, kExpert, kOverlay } kind = kHeader;
    int shard = 0;
    uint64_t offset = 0;          // in the shard
    const uint8_t* bytes = nullptr;  // header and overlay
  };
  const ModelFile* model_ = nullptr;
  Overlay overlay_;
  ReadAt read_at_;
  std::string header_;
  std::vector<Span> spans_;       // sorted by begin; gaps read as zeros
  uint64_t size_ = 0;
  uint64_t dense_bytes_read_ = 0;
  uint64_t expert_bytes_skipped_ = 0;
  Status status_;
};

}  // namespace remoe

#endif  // REMOE_GGUF_VIRTUAL_FILE_H_

#include "runtime/dense_reader.h"

#include <algorithm>
#include <cstring>

namespace remoe {

namespace {
constexpr uint64_t kChunk = 1u << 20;
constexpr int kChunks = 8;
}  // namespace

Result<std::unique_ptr<DenseReader>> DenseReader::Make(Reader* reader) {
  std::unique_ptr<DenseReader> dense(new DenseReader(reader));
  Result<std::unique_ptr<Staging>> ring = Staging::Make(kChunks, kChunk);
  if (!ring.ok()) return ring.status();
  dense->ring_ = std::move(ring.value());
  return dense;
}

Status DenseReader::ReadAt(int file, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
  if (n_bytes == 0) return Status::Ok();
  // Chunks end on page borders of the file, so that no page is read twice.
  std::vector<Read> reads;
  for (uint64_t at = offset; at < offset + n_bytes;) {
    const uint64_t border = (at / kChunk + 1) * kChunk;
    Read read;
    read.file = file;
    read.offset = at;
    read.n_bytes = std::min(border, offset + n_bytes) - at;
    read.tag = reads.size();
    reads.push_back(read);
    at += read.n_bytes;
  }
  chunks_.assign(reads.size(), Chunk());
  const ReadDone done = [this](const Read& read, const Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    chunks_[read.tag].done = true;
    chunks_[read.tag].status = status;
    changed_.notify_one();
  };
  Status failure;
  size_t submitted = 0;
  for (size_t i = 0; i < reads.size(); i++) {
    while (failure.ok() && submitted < reads.size()) {
      uint8_t* buffer = ring_->TryTake();
      if (buffer == nullptr) break;
      Read& read = reads[submitted++];
      read.dest = buffer + read.offset % kPage;
      reader_->Submit(&read, 1, done);
    }
    if (i >= submitted) break;  // after a failure: only what is in flight is waited for
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return chunks_[i].done; });
      if (failure.ok()) failure = chunks_[i].status;
    }
    if (failure.ok())
      std::memcpy(dest + (reads[i].offset - offset), reads[i].dest, reads[i].n_bytes);
    ring_->Give(reads[i].dest - reads[i].offset % kPage);
  }
  return failure;
}

}  // namespace remoe

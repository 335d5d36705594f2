#include "runtime/staging.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "base/format.h"
#include "base/rounding.h"
#include "storage/reader.h"

namespace remoe {

uint64_t Staging::BufferBytes(uint64_t payload_bytes) {
  return payload_bytes == 0 ? 0 : RoundUp(payload_bytes, kPage) + kPage;
}

Result<std::unique_ptr<Staging>> Staging::Make(int n, uint64_t payload_bytes) {
  std::unique_ptr<Staging> staging(new Staging);
  const uint64_t each = BufferBytes(payload_bytes);
  if (each == 0) return staging;
  void* data = mmap(nullptr, each * n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return Status(Code::kOutOfMemory, Format("cannot map %.1f MiB of staging buffers: %s",
                                             each * n / 1048576.0, std::strerror(errno)));
  }
  staging->data_ = static_cast<uint8_t*>(data);
  staging->n_bytes_ = each * n;
  staging->mapped_ = true;
  for (int i = 0; i < n; i++) staging->free_.push_back(staging->data_ + each * i);
  return staging;
}

std::unique_ptr<Staging> Staging::Over(uint8_t* data, int n, uint64_t payload_bytes) {
  std::unique_ptr<Staging> staging(new Staging);
  const uint64_t each = BufferBytes(payload_bytes);
  staging->data_ = data;
  staging->n_bytes_ = each * n;
  for (int i = 0; i < n; i++) staging->free_.push_back(data + each * i);
  return staging;
}

Staging::~Staging() {
  if (mapped_) munmap(data_, n_bytes_);
}

uint8_t* Staging::TryTake() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return nullptr;
  uint8_t* buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void Staging::Give(uint8_t* buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(buffer);
}

}  // namespace remoe

// Staging: a few page-aligned buffers for reads that cannot land in their slot, because their bytes
// lie at another residue in the file, or are rewritten on arrival.
//
// TryTake() hands one out or says that none is free, and Give() returns one; both are thread-safe.
// Owned by one ExpertStore.
#ifndef REMOE_RUNTIME_STAGING_H_
#define REMOE_RUNTIME_STAGING_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"

namespace remoe {

class Staging {
 public:
  // `n` buffers that each take `payload_bytes` at any residue modulo the page size; none when it is
  // 0.
  static Result<std::unique_ptr<Staging>> Make(int n, uint64_t payload_bytes);
  // The same over somebody else's memory, page-aligned, of n * BufferBytes(payload_bytes), which
  // outlives this.
  static std::unique_ptr<Staging> Over(uint8_t* data, int n, uint64_t payload_bytes);
  ~Staging();

  // RETURNS: the start of a free buffer, page-aligned, or null.
  uint8_t* TryTake();
  void Give(uint8_t* buffer);
  uint64_t n_bytes() const { return n_bytes_; }
  static uint64_t BufferBytes(uint64_t payload_bytes);

 private:
  Staging() = default;
  uint8_t* data_ = nullptr;
  uint64_t n_bytes_ = 0;
  bool mapped_ = false;  // here, and to be unmapped
  std::mutex mutex_;
  std::vector<uint8_t*> free_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_STAGING_H_

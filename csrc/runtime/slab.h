// Slab: one anonymous mapping that holds every slot, made once, freed with its owner.
//
// Addresses are there for all slots that there may ever be; Hold() says how many bytes from the start
// are in use, and gives the pages of the rest back to the system. Pages become resident when a slot
// is first filled. Huge pages and locking are asked for and,
// where the machine refuses, noted in a line. The mapping is page-aligned.
//
// Owned by one ExpertStore; what is held may be used from any thread. Hold() and notes() from one.
#ifndef REMOE_RUNTIME_SLAB_H_
#define REMOE_RUNTIME_SLAB_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

class Slab {
 public:
  // Maps n_bytes, and holds the first of them. REQUIRES: held_bytes <= n_bytes.
  static Result<std::unique_ptr<Slab>> Make(uint64_t n_bytes, uint64_t held_bytes, bool lock);
  // Addresses without memory behind them, for slots that lie in a SlotMemory: who touches one faults.
  static Result<std::unique_ptr<Slab>> Addresses(uint64_t n_bytes);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t n_bytes() const { return n_bytes_; }
  // The first n_bytes are in use. Whatever lies beyond is lost, and its pages are the system's; taken
  // up again it is zeros. REQUIRES: n_bytes <= n_bytes().
  void Hold(uint64_t n_bytes);
  uint64_t held_bytes() const { return held_bytes_; }
  bool huge_pages() const { return huge_pages_; }
  bool locked() const { return locked_; }
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  Slab() = default;
  void Lock(uint64_t from, uint64_t to);
  uint8_t* data_ = nullptr;
  uint64_t n_bytes_ = 0;
  uint64_t held_bytes_ = 0;
  bool huge_pages_ = false;
  std::atomic<bool> locked_{false};
  std::vector<std::string> notes_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_SLAB_H_

// Slab: one anonymous mapping that holds every slot, made once, never grown, freed with its owner.
//
// Pages become resident when a slot is first filled. Huge pages and locking are asked for and,
// where the machine refuses, noted in a line. The mapping is page-aligned.
//
// Owned by one ExpertStore; the memory may be used from any thread.
#ifndef REMOE_RUNTIME_SLAB_H_
#define REMOE_RUNTIME_SLAB_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

class Slab {
 public:
  static Result<std::unique_ptr<Slab>> Make(uint64_t n_bytes, bool lock);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t n_bytes() const { return n_bytes_; }
  bool huge_pages() const { return huge_pages_; }
  bool locked() const { return locked_; }
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  Slab() = default;
  uint8_t* data_ = nullptr;
  uint64_t n_bytes_ = 0;
  bool huge_pages_ = false;
  bool locked_ = false;
  std::vector<std::string> notes_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_SLAB_H_

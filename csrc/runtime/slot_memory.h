// SlotMemory: where slots lie when the CPU cannot reach them: memory of a GPU, say.
//
// Storage cannot write there, so every matrix passes through a staging buffer, which this provides
// too, in host memory that the device takes bytes from quickly. Offsets count from the first slot.
//
// Shared by the store and who computes from it. Write() from any thread, also for several slots at
// once; it RETURNS when the bytes may be used by what is computed next.
#ifndef REMOE_RUNTIME_SLOT_MEMORY_H_
#define REMOE_RUNTIME_SLOT_MEMORY_H_

#include <cstdint>

namespace remoe {

class SlotMemory {
 public:
  virtual ~SlotMemory() = default;
  // What lies after the bytes, up to `room_bytes`, becomes zeros, whatever lay there before.
  virtual void Write(uint64_t offset, const uint8_t* bytes, uint64_t n_bytes,
                     uint64_t room_bytes) = 0;
  // Page-aligned host memory of `staging_bytes()`.
  virtual uint8_t* staging() = 0;
  virtual uint64_t staging_bytes() const = 0;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_SLOT_MEMORY_H_

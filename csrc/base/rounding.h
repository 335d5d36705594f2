// Rounding to multiples, of sizes and offsets in bytes.
//
// O_DIRECT and slots want whole pages; GGUF tensors begin at multiples of their alignment. A unit
// need not be a power of two.
//
// Pure functions of values, usable in constant expressions and safe in any thread.
#ifndef REMOE_BASE_ROUNDING_H_
#define REMOE_BASE_ROUNDING_H_

#include <cstdint>

namespace remoe {

constexpr uint64_t RoundDown(uint64_t value, uint64_t unit) {
  return value / unit * unit;
}

// REQUIRES: value + unit - 1 does not overflow.
constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return RoundDown(value + unit - 1, unit);
}

}  // namespace remoe

#endif  // REMOE_BASE_ROUNDING_H_

// Value types of a GGUF's keys, by number, and how their scalars are decoded.
//
// Little-endian, as the format is. A pointer need not be aligned, and must have the type's bytes
// behind it.
//
// Functions of their arguments alone: thread-safe.
#ifndef REMOE_GGUF_VALUE_TYPES_H_
#define REMOE_GGUF_VALUE_TYPES_H_

#include <cstdint>
#include <cstring>
#include <optional>

namespace remoe {

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

// Of one value; 0 for strings, arrays and unknown types.
uint64_t ScalarBytes(uint32_t type);

// nullopt for a negative number, and for what is no integer or bool.
std::optional<uint64_t> DecodeUnsigned(uint32_t type, const char* bytes);

// A 64-bit number that does not fit is no integer here, as nothing in a model counts that far.
std::optional<int64_t> DecodeInteger(uint32_t type, const char* bytes);

template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

}  // namespace remoe

#endif  // REMOE_GGUF_VALUE_TYPES_H_

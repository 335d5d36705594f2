#include "gguf/value_types.h"

namespace remoe {
namespace {

template <typename T>
std::optional<uint64_t> NonNegative(const char* bytes) {
  const T value = Load<T>(bytes);
  if (value < 0) return std::nullopt;
  return static_cast<uint64_t>(value);
}

}  // namespace

uint64_t ScalarBytes(uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;
  }
}

std::optional<uint64_t> DecodeUnsigned(uint32_t type, const char* bytes) {
  switch (type) {
    case kU8:
      return Load<uint8_t>(bytes);
    case kBool:
      return Load<uint8_t>(bytes) != 0 ? 1 : 0;
    case kI8:
      return NonNegative<int8_t>(bytes);
    case kU16:
      return Load<uint16_t>(bytes);
    case kI16:
      return NonNegative<int16_t>(bytes);
    case kU32:
      return Load<uint32_t>(bytes);
    case kI32:
      return NonNegative<int32_t>(bytes);
    case kU64:
      return Load<uint64_t>(bytes);
    case kI64:
      return NonNegative<int64_t>(bytes);
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> DecodeInteger(uint32_t type, const char* bytes) {
  switch (type) {
    case kI8:
      return Load<int8_t>(bytes);
    case kI16:
      return Load<int16_t>(bytes);
    case kI32:
      return Load<int32_t>(bytes);
    case kI64:
      return Load<int64_t>(bytes);
    default: {
      const auto value = DecodeUnsigned(type, bytes);
      if (!value || *value > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(*value);
    }
  }
}

}  // namespace remoe

// Sizes of the tensor types that a GGUF can hold, by ggml type number.
//
// Our own table, because this layer does not see ggml; a test of the device layer compares the two.
//
// Static data that nobody owns and nothing changes: thread-safe.
#ifndef REMOE_GGUF_TYPES_H_
#define REMOE_GGUF_TYPES_H_

#include <cstdint>

namespace remoe {

struct TypeTraits {
  const char* name;        // as in the field: "Q4_K"
  uint32_t block_weights;  // weights of a block
  uint32_t block_bytes;
};

// Null for a number that is unknown or was removed from the format.
const TypeTraits* FindType(uint32_t ggml_type);

}  // namespace remoe

#endif  // REMOE_GGUF_TYPES_H_

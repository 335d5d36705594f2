// What ggml's CPU products bring activations to before they meet quantised weights.
//
// A product converts each row of its input to the format of the weights' dot product. Whoever
// multiplies one row by several experts converts it once, here, with the same function and so with
// the same bits. Pure functions; any thread.
#ifndef REMOE_DEVICE_COMPUTE_ACTIVATIONS_H_
#define REMOE_DEVICE_COMPUTE_ACTIVATIONS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ggml.h"

namespace remoe {

// The format for weights of that type: that of their dot product, or floats where nothing converts
// to it.
ggml_type ActivationType(ggml_type weights);

// n rows of ne0 floats, `stride` bytes apart, one after another in `type`, by the function that the
// product itself would use: the same bits. REQUIRES: an ActivationType.
void ConvertRows(ggml_type type, const uint8_t* rows, size_t stride, int64_t ne0, int64_t n,
                 std::vector<uint8_t>* converted);

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_ACTIVATIONS_H_

// Requantise: weights of one ggml type in another, by ggml's own converters.
//
// Rows go through floats. The types offered are those that ggml quantises to without knowing which
// weights matter (an importance matrix).
//
// Pure functions; any thread.
#ifndef REMOE_DEVICE_REQUANTISE_H_
#define REMOE_DEVICE_REQUANTISE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

// The number of the type of that name ("Q2_K") that weights can be requantised to, for rows of n_per_row
// values: the type itself, or, where rows are no multiple of its blocks, the one that llama.cpp takes
// then. kInvalidArgument naming the known types, or where none fits such rows.
Result<uint32_t> CoarseTypeFor(const std::string& name, int64_t n_per_row);

// n_rows of type `from` in type `to`. REQUIRES: `bytes` has so many rows. Fails with kNotSupported
// where ggml has no converter, and with kCorrupt where the result is no numbers.
Status Requantise(uint32_t from, const uint8_t* bytes, uint32_t to, int64_t n_rows,
                  int64_t n_per_row, std::vector<uint8_t>* out);

}  // namespace remoe

#endif  // REMOE_DEVICE_REQUANTISE_H_

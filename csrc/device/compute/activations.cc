#include "device/compute/activations.h"

#include "device/graph/cpu_backend.h"

namespace remoe {

ggml_type ActivationType(ggml_type weights) {
  const ggml_type type = cpu::TypeTraits(weights)->vec_dot_type;
  return cpu::TypeTraits(type)->from_float != nullptr ? type : GGML_TYPE_F32;
}

void ConvertRows(ggml_type type, const uint8_t* rows, size_t stride, int64_t ne0, int64_t n,
                 std::vector<uint8_t>* converted) {
  const ggml_from_float_t from_float = cpu::TypeTraits(type)->from_float;
  const size_t row_bytes = ggml_row_size(type, ne0);
  converted->resize(row_bytes * n);
  for (int64_t i = 0; i < n; i++) {
    from_float(reinterpret_cast<const float*>(rows + i * stride), converted->data() + i * row_bytes,
               ne0);
  }
}

}  // namespace remoe

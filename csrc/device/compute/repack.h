// Repacking: on some machines llama.cpp rearranges the rows of quantised weights as it loads them,
// for kernels whose sums round differently. To give the same bits, experts must be rearranged the
// same way, which is done here on arrival, one matrix of one expert at a time, by ggml's own code.
//
// Thread-safe once made.
#ifndef REMOE_DEVICE_COMPUTE_REPACK_H_
#define REMOE_DEVICE_COMPUTE_REPACK_H_

#include <cstdint>

#include "device/graph/ggml_abi.h"

namespace remoe {

class Repack {
 public:
  // The rearrangement that llama.cpp would choose for an expert tensor [ne0, ne1, n_experts] when
  // extra buffer types are allowed; inactive when it would leave the tensor as it is.
  Repack() = default;
  static Repack For(ggml_type type, int64_t ne0, int64_t ne1, int64_t n_experts);

  bool active() const { return buffer_ != nullptr; }
  // Rearranges one expert's matrix. REQUIRES: active(); source and dest do not overlap.
  void Apply(const uint8_t* source, uint8_t* dest) const;
  // Marks a tensor over rearranged data, so that the CPU backend takes the fitting kernels.
  void Tag(ggml_tensor* tensor) const;

 private:
  // An empty one of that type; lives as long as the process.
  ggml_backend_buffer_t buffer_ = nullptr;
  ggml_type type_ = GGML_TYPE_F32;
  int64_t ne0_ = 0, ne1_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_REPACK_H_

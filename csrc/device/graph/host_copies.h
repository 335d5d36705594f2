// HostCopies: a model's small weights where the CPU can read them.
//
// Routers lie with the dense weights, on a GPU perhaps, and what asks them runs on the CPU. A weight
// that is in host memory stands for itself; of any other a copy is made, once, when it is first asked
// for, and kept as long as this lives.
//
// Weights are those of one llama_model, loaded and unchanged. Any thread.
#ifndef REMOE_DEVICE_GRAPH_HOST_COPIES_H_
#define REMOE_DEVICE_GRAPH_HOST_COPIES_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ggml.h"

namespace remoe {

// Whether the CPU can read a tensor where it lies; one of no buffer is somebody's own memory.
bool InHostMemory(const ggml_tensor* tensor);

class HostCopies {
 public:
  // RETURNS: `weight`, or its copy. Null stays null.
  const ggml_tensor* Of(const ggml_tensor* weight);
  // What a copy of it takes: 0 where the CPU can read it as it is.
  static uint64_t BytesFor(const ggml_tensor* weight);
  uint64_t n_bytes() const;

 private:
  struct Copy {
    ggml_tensor tensor;
    std::vector<uint8_t> bytes;
  };
  mutable std::mutex mutex_;
  std::unordered_map<const ggml_tensor*, std::unique_ptr<Copy>> copies_;
  uint64_t n_bytes_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_HOST_COPIES_H_

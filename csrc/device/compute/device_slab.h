// DeviceSlab: slots in a GPU's memory, and staging in host memory that the GPU takes bytes from fast.
//
// Made through ggml's backend interface alone, so that every backend is the same to it. The slab is
// one buffer, cleared, so that what kernels read beyond a matrix is zero.
//
// Shared by the store that fills it and the views that kernels compute from. Write() from any thread.
#ifndef REMOE_DEVICE_COMPUTE_DEVICE_SLAB_H_
#define REMOE_DEVICE_COMPUTE_DEVICE_SLAB_H_

#include <memory>
#include <vector>

#include "base/status.h"
#include "ggml-backend.h"
#include "gguf/model_file.h"
#include "runtime/slot_layout.h"
#include "runtime/slot_memory.h"

namespace remoe {

class DeviceSlab : public SlotMemory {
 public:
  // How slots lie in that device's memory, for these layers.
  static SlotRules Rules(ggml_backend_dev_t gpu, const ModelFile& file,
                         const std::vector<ExpertLayer>& layers);
  // Fails with kOutOfMemory, naming the device.
  static Result<std::shared_ptr<DeviceSlab>> Make(ggml_backend_dev_t gpu, uint64_t slab_bytes,
                                                  uint64_t staging_bytes);
  ~DeviceSlab() override;

  void Write(uint64_t offset, const uint8_t* bytes, uint64_t n_bytes, uint64_t room_bytes) override;
  uint8_t* staging() override { return staging_; }
  uint64_t staging_bytes() const override { return staging_bytes_; }

  // Where a view of the slab points to.
  ggml_backend_buffer_t buffer() const { return slab_; }
  uint8_t* at(uint64_t offset) const;

 private:
  DeviceSlab() = default;
  ggml_backend_buffer_t slab_ = nullptr;
  ggml_backend_buffer_t host_ = nullptr;
  uint8_t* staging_ = nullptr;
  uint64_t staging_bytes_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_DEVICE_SLAB_H_

// VirtualFileLoading: how the engine's models come in: as a virtual file, of which llama.cpp reads the
// dense bytes, and in which expert tensors are known by their names alone.
//
// Nothing of an expert is read, and nothing is written: the addresses have no memory behind them.
//
// Owned by the model that it loads, which llama.cpp's model points at. One thread.
#ifndef REMOE_DEVICE_VIRTUAL_LOADING_H_
#define REMOE_DEVICE_VIRTUAL_LOADING_H_

#include <memory>

#include "device/graph/weight_buffer.h"

namespace remoe {

class VirtualFileLoading : public WeightLoading {
 public:
  explicit VirtualFileLoading(StreamedModel* model) : model_(model) {}
  std::unique_ptr<BufferTensors> Begin(size_t n_tensors) override;
  // While it loads: the virtual file makes nothing of a read "into" an expert tensor.
  bool in_place() const override { return under_way_; }
  void SetUnderWay(bool under_way) { under_way_ = under_way; }

 private:
  StreamedModel* const model_;
  bool under_way_ = false;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_VIRTUAL_LOADING_H_

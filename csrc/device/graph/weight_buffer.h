// The memory that llama.cpp believes experts to lie in: a buffer type whose tensors take none.
//
// Tensors get addresses of an inaccessible mapping: a read of expert weights that went past this
// device would fault instead of computing nonsense. How a tensor finds the model it belongs to is
// up to who loads, behind WeightLoading: the engine's virtual file, or a program's own mapping.
//
// Buffers are made and filled by the thread that loads; origins may be read from any thread.
#ifndef REMOE_DEVICE_GRAPH_WEIGHT_BUFFER_H_
#define REMOE_DEVICE_GRAPH_WEIGHT_BUFFER_H_

#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"
#include "device/graph/ggml_abi.h"

namespace remoe {

class StreamedModel;

// Where a weight tensor of ours comes from; its `extra` points to one.
struct TensorOrigin {
  StreamedModel* model = nullptr;
  int layer = 0;   // index into the model's expert layers
  int matrix = 0;  // index into that layer's matrices
};

// The tensors of one buffer. Lives as long as the buffer.
class BufferTensors {
 public:
  virtual ~BufferTensors() = default;
  // A tensor has its place in the buffer. RETURNS: its origin, which outlives it; a failure ends
  // the load.
  virtual Result<TensorOrigin*> Place(const ggml_tensor& tensor) = 0;
  // What went wrong with one of them: a line on standard error, unless whoever loads has a log.
  virtual void Tell(const std::string& line) const;
  // Loading "fills" the tensor with what lies here. What is wrong with that is the model's failure.
  virtual void Fill(const ggml_tensor& tensor, const void* data) = 0;
};

// Who loads into a buffer type. Outlives it.
class WeightLoading {
 public:
  virtual ~WeightLoading() = default;
  // A buffer for that many tensors is made.
  virtual std::unique_ptr<BufferTensors> Begin(size_t n_tensors) = 0;
  // llama.cpp asks what the device has to offer, as it does when a load begins.
  virtual void Listed() {}
  // llama.cpp is about to put an expert tensor into the buffer type.
  virtual void Claimed() {}
  // Whether llama.cpp is to take the tensors for host memory now: it then reads "into" them in
  // place, where it would otherwise stage each through a buffer of its whole size.
  virtual bool in_place() const = 0;
};

// `device` and `loading` outlive the type.
std::unique_ptr<ggml_backend_buffer_type> MakeBufferType(ggml_backend_dev_t device,
                                                         WeightLoading* loading);

// Whether `tensor` lies in a buffer type of ours, loaded or not.
bool InWeightBuffer(const ggml_tensor* tensor);
WeightLoading* LoadingOf(ggml_backend_buffer_type_t type);  // REQUIRES: one of ours
// The origin of a weight tensor in one of our buffers; null for any other tensor, and for one of a
// model that llama.cpp only measures.
const TensorOrigin* OriginOf(const ggml_tensor* tensor);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_WEIGHT_BUFFER_H_

// PlainTensor: a tensor that no context owns, for asking backends and buffer types about a shape, and
// for naming memory that is somebody else's.
//
// Its elements lie one after another, without gaps, as ggml_new_tensor() would lay them. It has no
// memory, no buffer and no operation until its user gives it one.
//
// A value; nothing is shared between threads.
#ifndef REMOE_DEVICE_GRAPH_PLAIN_TENSOR_H_
#define REMOE_DEVICE_GRAPH_PLAIN_TENSOR_H_

#include "ggml.h"
#include "gguf/model_file.h"

namespace remoe {

inline ggml_tensor PlainTensor(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) {
  ggml_tensor tensor{};
  tensor.type = type;
  tensor.ne[0] = ne0;
  tensor.ne[1] = ne1;
  tensor.ne[2] = ne2;
  tensor.ne[3] = 1;
  tensor.nb[0] = ggml_type_size(type);
  tensor.nb[1] = ggml_row_size(type, ne0);
  tensor.nb[2] = tensor.nb[1] * ne1;
  tensor.nb[3] = tensor.nb[2] * ne2;
  return tensor;
}

// Slots of an expert's bytes, seen as the experts of one of a file's tensors.
inline ggml_tensor SlotView(const Tensor& tensor, int n_slots, uint64_t slot_bytes) {
  ggml_tensor view =
      PlainTensor(static_cast<ggml_type>(tensor.type), static_cast<int64_t>(tensor.ne[0]),
                  static_cast<int64_t>(tensor.ne[1]), n_slots);
  view.nb[2] = slot_bytes;
  view.nb[3] = view.nb[2] * view.ne[2];
  ggml_set_name(&view, tensor.name.c_str());
  return view;
}

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_PLAIN_TENSOR_H_

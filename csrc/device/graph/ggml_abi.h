// The part of ggml's backend ABI that its installed headers leave out: the tables of functions
// behind a device, its backends and its buffers.
//
// Built against a llama.cpp source tree (REMOE_GGML_TREE), they are that tree's own. For the pinned
// llama-cpp-python they are declared here field by field; members that we neither set nor call are
// spelt as `void*`: only their place matters. CheckAbi() refuses any other build before a device is
// registered. Any thread.
#ifndef REMOE_DEVICE_GRAPH_GGML_ABI_H_
#define REMOE_DEVICE_GRAPH_GGML_ABI_H_

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "ggml-backend.h"
#include "ggml.h"

#ifdef REMOE_GGML_TREE
#include "ggml-backend-impl.h"
#else

#define GGML_BACKEND_API_VERSION 2

extern "C" {

struct ggml_backend_buffer_type_i {
  const char* (*get_name)(ggml_backend_buffer_type_t);
  ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t size);
  size_t (*get_alignment)(ggml_backend_buffer_type_t);
  size_t (*get_max_size)(ggml_backend_buffer_type_t);
  size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
  bool (*is_host)(ggml_backend_buffer_type_t);
};

struct ggml_backend_buffer_type {
  ggml_backend_buffer_type_i iface;
  ggml_backend_dev_t device;
  void* context;
};

struct ggml_backend_buffer_i {
  void (*free_buffer)(ggml_backend_buffer_t);
  void* (*get_base)(ggml_backend_buffer_t);
  ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor*);
  void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor*, uint8_t value, size_t offset,
                        size_t size);
  void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor*, const void* data, size_t offset,
                     size_t size);
  void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor*, void* data, size_t offset,
                     size_t size);
  void* set_tensor_2d;
  void* get_tensor_2d;
  void* cpy_tensor;
  void (*clear)(ggml_backend_buffer_t, uint8_t value);
  void* reset;
};

struct ggml_backend_buffer {
  ggml_backend_buffer_i iface;
  ggml_backend_buffer_type_t buft;
  void* context;
  size_t size;
  ggml_backend_buffer_usage usage;
};

// Given to graph_optimize: `tensor` keeps its memory until `until`, a node of the same graph, has
// been computed.
struct ggml_backend_graph_optimize_params {
  void (*add_alloc_dep)(void* user_data, ggml_tensor* tensor, ggml_tensor* until);
  void* user_data;
};

struct ggml_backend_i {
  const char* (*get_name)(ggml_backend_t);
  void (*free)(ggml_backend_t);
  void* set_tensor_async;
  void* get_tensor_async;
  void* set_tensor_2d_async;
  void* get_tensor_2d_async;
  void* cpy_tensor_async;
  void* synchronize;
  void* graph_plan_create;
  void* graph_plan_free;
  void* graph_plan_update;
  void* graph_plan_compute;
  ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph*);
  void* event_record;
  void* event_wait;
  void (*graph_optimize)(ggml_backend_t, ggml_cgraph*, ggml_backend_graph_optimize_params*);
};

struct ggml_backend {
  ggml_guid_t guid;
  ggml_backend_i iface;
  ggml_backend_dev_t device;
  void* context;
};

struct ggml_backend_device_i {
  const char* (*get_name)(ggml_backend_dev_t);
  const char* (*get_description)(ggml_backend_dev_t);
  void (*get_memory)(ggml_backend_dev_t, size_t* free, size_t* total);
  enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
  void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props*);
  ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char* params);
  ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
  ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
  void* buffer_from_host_ptr;
  bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor* op);
  bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
  void* offload_op;
  void* event_new;
  void* event_free;
  void* event_synchronize;
};

struct ggml_backend_device {
  ggml_backend_device_i iface;
  ggml_backend_reg_t reg;
  void* context;
};

struct ggml_backend_reg_i {
  const char* (*get_name)(ggml_backend_reg_t);
  size_t (*get_device_count)(ggml_backend_reg_t);
  ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t index);
  void* (*get_proc_address)(ggml_backend_reg_t, const char* name);
};

struct ggml_backend_reg {
  int api_version;
  ggml_backend_reg_i iface;
  void* context;
};

// Exported by ggml-base, undeclared in its installed headers.
ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t,
                                               ggml_backend_buffer_i iface, void* context,
                                               size_t size);

}  // extern "C"

#endif  // REMOE_GGML_TREE

namespace remoe::abi {

constexpr int kBackendApiVersion = GGML_BACKEND_API_VERSION;

// The build of ggml that this was compiled for, and what to type where the process has another.
struct Wanted {
  const char* version;
  const char* commit;  // null where any will do: llama-cpp-python has a version of its own
  const char* remedy;
};

// Compares the libraries in this process with what this file was written for. RETURNS:
// kNotSupported that names both sides and the remedy.
Status CheckAbi(const Wanted& wanted);
// What the extension for Python wants: the pinned llama-cpp-python.
extern const Wanted kPinned;

}  // namespace remoe::abi

#endif  // REMOE_DEVICE_GRAPH_GGML_ABI_H_

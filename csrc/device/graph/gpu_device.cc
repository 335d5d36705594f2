#include "device/graph/gpu_device.h"

#include "device/graph/backend.h"
#include "device/graph/device.h"

namespace remoe {

namespace {

ggml_backend_dev_t GpuOf(ggml_backend_dev_t device) {
  return static_cast<ggml_backend_dev_t>(device->context);
}

enum ggml_backend_dev_type DeviceType(ggml_backend_dev_t device) {
  return ggml_backend_dev_type(GpuOf(device));
}

void DeviceProps(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  StorageDevice()->iface.get_props(StorageDevice(), props);
  props->type = DeviceType(device);
}

ggml_backend_t InitBackend(ggml_backend_dev_t device, const char*) {
  return MakeBackend(device, GpuOf(device));
}

ggml_backend_buffer_type_t BufferType(ggml_backend_dev_t device) {
  return ggml_backend_dev_buffer_type(GpuOf(device));
}

ggml_backend_buffer_type_t HostBufferType(ggml_backend_dev_t device) {
  return ggml_backend_dev_host_buffer_type(GpuOf(device));
}

bool SupportsBufferType(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
  return type->device == device || ggml_backend_dev_supports_buft(GpuOf(device), type);
}

}  // namespace

std::unique_ptr<ggml_backend_device> MakeDeviceOn(ggml_backend_dev_t gpu) {
  auto device = std::make_unique<ggml_backend_device>(*StorageDevice());
  device->iface.get_type = DeviceType;
  device->iface.get_props = DeviceProps;
  device->iface.init_backend = InitBackend;
  device->iface.get_buffer_type = BufferType;
  device->iface.get_host_buffer_type = HostBufferType;
  device->iface.supports_buft = SupportsBufferType;
  device->context = gpu;
  return device;
}

}  // namespace remoe

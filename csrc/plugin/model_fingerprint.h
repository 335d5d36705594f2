// Which model a file holds, whatever its routers: the same digest that the Python side writes into
// overlays and profiles (remoe_edge/files/fingerprint.py says over what).
//
// Reads the first and last 4 KiB of every tensor that is no router, from the files.
//
// Pure; any thread.
#ifndef REMOE_PLUGIN_MODEL_FINGERPRINT_H_
#define REMOE_PLUGIN_MODEL_FINGERPRINT_H_

#include <string>

#include "base/status.h"
#include "gguf/model_file.h"

namespace remoe::plugin {

Result<std::string> FingerprintOf(const ModelFile& model);

// Whether a tensor of that name belongs to a router: its matrix, its bias or its selection bias.
bool IsRouter(const std::string& tensor_name);
// Exactly those bytes of a file.
Status ReadBytes(const std::string& path, uint64_t offset, uint64_t n_bytes, void* dest);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_MODEL_FINGERPRINT_H_

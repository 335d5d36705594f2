// Loading a StreamedModel's dense part with llama.cpp: the model goes in as a virtual file, of which
// only dense bytes are read, and its expert tensors into the model's own buffer type. The one place
// that knows libllama.
//
// One load at a time in a process, whatever thread: llama.cpp's log callback, of which errors are taken, is global.
#ifndef REMOE_DEVICE_LOADER_H_
#define REMOE_DEVICE_LOADER_H_

#include <functional>

#include "base/status.h"
#include "device/streamed_model.h"

struct llama_model;
struct llama_model_params;

namespace remoe {

// Loads with `params`, of which buffer overrides and load mode are replaced. `progress` gets a
// fraction and says whether to go on; it may be empty. RETURNS: the model, owned by the caller.
Result<llama_model*> Load(StreamedModel* model, const llama_model_params& params,
                          const std::function<bool(float)>& progress);

}  // namespace remoe

#endif  // REMOE_DEVICE_LOADER_H_

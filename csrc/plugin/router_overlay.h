// Tuned routers, laid over a model that the program has mapped.
//
// The pages that hold the model's own routers become private copies in which the overlay's bytes
// stand; the file stays as it is, and so does every other process that maps it. This happens after
// llama.cpp has mapped the file and before it uses or copies a weight.
//
// The thread that loads.
#ifndef REMOE_PLUGIN_ROUTER_OVERLAY_H_
#define REMOE_PLUGIN_ROUTER_OVERLAY_H_

#include <string>

#include "base/status.h"
#include "plugin/mapped_model.h"

namespace remoe::plugin {

// `routers`: the path of an overlay; "default" for the one that lies beside the model; or empty for
// the model's own routers. Fails, and nothing has changed, where the overlay is not this model's.
Status LayRouters(const std::string& routers, const MappedModel& model);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_ROUTER_OVERLAY_H_

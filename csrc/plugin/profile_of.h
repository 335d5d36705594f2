// The user's profile for a model, from a file that `remoe-edge profile` made.
//
// Read whole and checked. A profile of another model is refused, and so is one that is damaged; one
// that holds weights of the policy alone serves any model.
//
// Pure; any thread.
#ifndef REMOE_PLUGIN_PROFILE_OF_H_
#define REMOE_PLUGIN_PROFILE_OF_H_

#include <memory>
#include <string>

#include "base/status.h"
#include "cache/profile.h"
#include "gguf/model_file.h"

namespace remoe::plugin {

// Null for an empty path.
Result<std::shared_ptr<const Profile>> ProfileOf(const std::string& path, const ModelFile& model);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_PROFILE_OF_H_

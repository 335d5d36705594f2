#include "base/format.h"
#include "cache/lru.h"
#include "cache/policy.h"

namespace remoe {

std::vector<std::string> PolicyNames() { return {"lru"}; }

Result<std::unique_ptr<Policy>> MakePolicy(const std::string& name, const Geometry& geometry) {
  if (name == "lru") return std::unique_ptr<Policy>(std::make_unique<LruPolicy>());
  std::string known;
  for (const std::string& each : PolicyNames()) known += (known.empty() ? "" : ", ") + each;
  return Status(Code::kInvalidArgument,
                Format("unknown policy '%s'; known: %s", name.c_str(), known.c_str()));
}

}  // namespace remoe

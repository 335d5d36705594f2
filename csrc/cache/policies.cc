#include "base/format.h"
#include "cache/arc.h"
#include "cache/belady.h"
#include "cache/least_stale.h"
#include "cache/lfru.h"
#include "cache/lfu.h"
#include "cache/lru.h"
#include "cache/policy.h"
#include "cache/reuse_biased.h"

namespace remoe {

namespace {

using Made = std::unique_ptr<Policy>;

struct Entry {
  const char* name;
  Made (*make)(const Geometry& geometry);
};

template <typename P>
Made Make(const Geometry& geometry) {
  if constexpr (std::is_constructible_v<P, const Geometry&>) {
    return std::make_unique<P>(geometry);
  } else {
    return std::make_unique<P>();
  }
}

constexpr Entry kPolicies[] = {
    {"lru", Make<LruPolicy>},
    {"lfu", Make<LfuPolicy>},
    {"lfru", Make<LfruPolicy>},
    {"arc", Make<ArcPolicy>},
    {"least-stale", Make<LeastStalePolicy>},
    // Learns, and so is made apart from the others.
    {"reuse-biased", nullptr},
    {"belady", Make<BeladyPolicy>},
};

// Far above any model: tables of so many experts are tens of MiB.
constexpr int kMostLayers = 4096, kMostExperts = 16384, kMostInAll = 1 << 22;

}  // namespace

Status CheckGeometry(const Geometry& geometry) {
  const bool sound = geometry.n_layers >= 1 && geometry.n_layers <= kMostLayers &&
                     geometry.n_experts >= 1 && geometry.n_experts <= kMostExperts &&
                     geometry.total() <= kMostInAll && geometry.n_slots >= 1;
  if (sound) return Status::Ok();
  return Status(Code::kInvalidArgument,
                Format("no such cache: %d layers of %d experts, %d slots", geometry.n_layers,
                       geometry.n_experts, geometry.n_slots));
}

std::vector<std::string> PolicyNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kPolicies) names.push_back(entry.name);
  return names;
}

std::vector<std::string> LivePolicyNames() {
  std::vector<std::string> names = PolicyNames();
  names.pop_back();  // the oracle stands last
  return names;
}

Result<Made> MakePolicy(const std::string& name, const Geometry& geometry,
                        std::shared_ptr<const Profile> profile) {
  REMOE_RETURN_IF_ERROR(CheckGeometry(geometry));
  for (const Entry& entry : kPolicies) {
    if (name != entry.name) continue;
    if (entry.make != nullptr) return entry.make(geometry);
    auto made = ReuseBiasedPolicy::Make(geometry, std::move(profile));
    if (!made.ok()) return made.status();
    return Made(std::move(made.value()));
  }
  std::string known;
  for (const std::string& each : PolicyNames()) known += (known.empty() ? "" : ", ") + each;
  return Status(Code::kInvalidArgument,
                Format("unknown policy '%s'; known: %s", name.c_str(), known.c_str()));
}

}  // namespace remoe

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>

#include "base/format.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "cache/profile.h"
#include "cache/reuse_biased.h"
#include "cache/reuse_columns.h"

namespace py = pybind11;

namespace remoe::bindings {

namespace {

py::bytes MakeProfile(int n_layers, int n_experts, const std::string& fingerprint,
                      const std::string& meta, const Array<float>& shares,
                      const Array<float>& weights, const Array<float>& scales,
                      const Array<int8_t>& links, const std::optional<Array<float>>& uses) {
  Profile profile;
  profile.fingerprint = fingerprint;
  profile.meta = meta;
  const bool weighted = shares.size() > 0;
  profile.n_weights = weighted ? kReuseColumnCount : 0;
  const bool linked = links.size() > 0;
  profile.n_contexts = linked ? ReuseBiasedPolicy::kContexts : 0;
  const bool of_one_model = linked || uses;
  if (of_one_model) MakeGeometry(n_layers, n_experts, 1);  // throws where there is none
  profile.n_layers = of_one_model ? n_layers : 0;
  profile.n_experts = of_one_model ? n_experts : 0;
  const py::ssize_t tables = static_cast<py::ssize_t>(profile.n_layers) * profile.n_contexts;
  if (uses && uses->size() != static_cast<py::ssize_t>(n_layers) * n_experts) {
    ThrowIfError(Status(Code::kInvalidArgument, "uses: one number for each expert"));
  }
  if (uses) profile.uses.assign(uses->data(), uses->data() + uses->size());
  if (weights.size() != shares.size() * profile.n_weights || scales.size() != tables ||
      links.size() != tables * n_experts * n_experts) {
    ThrowIfError(Status(Code::kInvalidArgument, "the parts of the profile differ in size"));
  }
  profile.shares.assign(shares.data(), shares.data() + shares.size());
  profile.weights.assign(weights.data(), weights.data() + weights.size());
  profile.scales.assign(scales.data(), scales.data() + scales.size());
  profile.links.assign(links.data(), links.data() + links.size());
  const Status sound = profile.Check();
  if (!sound.ok()) ThrowIfError(Status(sound.code(), "the new profile " + sound.message()));
  const std::vector<uint8_t> bytes = profile.Serialize();
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

py::dict ParseProfileBytes(const py::bytes& bytes, const Path& name) {
  const std::string_view view = bytes;
  Profile profile = Unwrap(
      Profile::Parse(reinterpret_cast<const uint8_t*>(view.data()), view.size(), name.bytes));
  py::dict dict;
  dict["n_layers"] = profile.n_layers;
  dict["n_experts"] = profile.n_experts;
  dict["n_contexts"] = profile.n_contexts;
  dict["fingerprint"] = profile.fingerprint;
  dict["meta"] = py::bytes(profile.meta);
  dict["shares"] = Moved(std::move(profile.shares));
  dict["weights"] = Moved(std::move(profile.weights));
  dict["scales"] = Moved(std::move(profile.scales));
  dict["uses"] = Moved(std::move(profile.uses));
  dict["links"] = Moved(std::move(profile.links));
  return dict;
}

}  // namespace

const float* CheckedBonus(const Bonus& bonus, int total) {
  if (!bonus) return nullptr;
  if (bonus->size() != total) {
    ThrowIfError(Status(Code::kInvalidArgument,
                        Format("bonus: %d values for %d experts, which want one each",
                               static_cast<int>(bonus->size()), total)));
  }
  for (int i = 0; i < total; i++) {
    if (std::isfinite(bonus->data()[i])) continue;
    ThrowIfError(
        Status(Code::kInvalidArgument,
               Format("bonus: %g for expert %d, counted over all layers, and not a finite value",
                      bonus->data()[i], i)));
  }
  return bonus->data();
}

std::shared_ptr<const Profile> ToProfile(const std::optional<py::bytes>& bytes) {
  if (!bytes) return nullptr;
  const std::string_view view = *bytes;
  return std::make_shared<const Profile>(Unwrap(
      Profile::Parse(reinterpret_cast<const uint8_t*>(view.data()), view.size(), "the profile")));
}

void RegisterProfile(py::module_& module) {
  module.def("make_profile", &MakeProfile, py::arg("n_layers"), py::arg("n_experts"),
             py::arg("fingerprint"), py::arg("meta"), py::arg("shares"), py::arg("weights"),
             py::arg("scales"), py::arg("links"), py::arg("uses") = py::none());
  module.def("parse_profile", &ParseProfileBytes, py::arg("data"), py::arg("name"));
}

}  // namespace remoe::bindings

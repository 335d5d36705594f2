#include "plugin/profile_of.h"

#include <sys/stat.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "base/format.h"
#include "plugin/model_fingerprint.h"

namespace remoe::plugin {

Result<std::shared_ptr<const Profile>> ProfileOf(const std::string& path, const ModelFile& model) {
  if (path.empty()) return std::shared_ptr<const Profile>();
  // A folder can be opened, and throws as it is read.
  struct stat about{};
  const bool regular = stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode);
  std::ifstream file(path, std::ios::binary);
  if (!regular || !file)
    return Status(Code::kInvalidArgument, "REMOE_PROFILE: cannot read " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Result<Profile> profile =
      Profile::Parse(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), path);
  if (!profile.ok()) return profile.status();
  REMOE_RETURN_IF_ERROR(profile.value().Check());
  if (profile.value().n_layers != 0 && !profile.value().fingerprint.empty()) {
    Result<std::string> own = FingerprintOf(model);
    if (!own.ok()) return own.status();
    if (own.value() != profile.value().fingerprint) {
      return Status(Code::kInvalidArgument,
                    Format("%s is a profile of another model than %s: give each model its own",
                           path.c_str(), model.paths()[0].c_str()));
    }
  }
  return std::make_shared<const Profile>(std::move(profile.value()));
}

}  // namespace remoe::plugin

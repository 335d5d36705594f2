#include "plugin/mapped_model.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "base/format.h"

namespace remoe::plugin {

namespace {

bool IsGguf(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  char magic[4] = {};
  const bool read = pread(file, magic, sizeof(magic), 0) == sizeof(magic);
  close(file);
  return read && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

std::string Resolved(const std::string& path) {
  char resolved[PATH_MAX];
  return realpath(path.c_str(), resolved) != nullptr ? resolved : path;
}

// The GGUFs that are mapped from their beginning on, those of no loaded model first.
std::vector<FileMapping> MappedGgufs(const std::function<bool(uintptr_t)>& taken) {
  std::vector<FileMapping> found;
  for (const FileMapping& mapping : FileMappings()) {
    if (mapping.offset != 0) {
      // Pages that were laid over a model, or unmapped from its middle, part its mapping.
      if (!found.empty() && found.back().path == mapping.path &&
          mapping.begin - found.back().begin == mapping.offset) {
        found.back().end = mapping.end;
      }
      continue;
    }
    if (IsGguf(mapping.path)) found.push_back(mapping);
  }
  std::stable_partition(found.begin(), found.end(),
                        [&taken](const FileMapping& mapping) { return !taken(mapping.begin); });
  return found;
}

}  // namespace

bool IsSame(const Tensor& of_file, const ggml_tensor& tensor) {
  if (of_file.name != tensor.name || of_file.type != static_cast<uint32_t>(tensor.type)) {
    return false;
  }
  for (int i = 0; i < 4; i++) {
    if (of_file.ne[i] != static_cast<uint64_t>(tensor.ne[i])) return false;
  }
  return true;
}

Result<MappedModel> MappedModel::Find(const ggml_tensor& tensor,
                                      const std::function<bool(uintptr_t)>& taken) {
  const std::vector<FileMapping> mappings = MappedGgufs(taken);
  std::vector<std::string> paths;  // caches of downloads store shards under names of their own
  for (const FileMapping& mapping : mappings) paths.push_back(mapping.path);
  std::string refused;
  for (const FileMapping& mapping : mappings) {
    Result<ModelFile> file = ModelFile::Open(mapping.path, paths);
    if (!file.ok()) {
      refused = "; " + file.status().message();
      continue;
    }
    const Tensor* found = file.value().Find(tensor.name);
    if (found == nullptr || !IsSame(*found, tensor)) continue;
    MappedModel model;
    for (const std::string& path : file.value().paths()) {
      FileMapping shard;
      for (const FileMapping& each : mappings) {
        if (shard.begin == 0 && Resolved(path) == each.path) shard = each;
      }
      model.shards.push_back(shard);
    }
    model.file = std::move(file.value());
    return model;
  }
  return Status(Code::kNotSupported,
                Format("no mapped file holds it: experts are streamed from models that the program "
                       "maps into memory (no --no-mmap, --direct-io or --load-mode none)%s",
                       refused.c_str()));
}

uintptr_t MappedModel::AddressOf(const Tensor& tensor) const {
  const FileMapping& shard = shards[static_cast<size_t>(tensor.shard)];
  return shard.begin == 0 ? 0 : shard.begin + tensor.offset;
}

}  // namespace remoe::plugin

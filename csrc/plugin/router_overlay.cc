#include "plugin/router_overlay.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <map>

#include "base/format.h"
#include "gguf/virtual_file.h"
#include "plugin/dense_pages.h"
#include "plugin/log.h"
#include "plugin/model_fingerprint.h"

namespace remoe::plugin {

namespace {

constexpr uint64_t kFormatVersion = 1;
constexpr char kSuffix[] = ".routers.gguf";

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// NAME.routers.gguf beside NAME.gguf, or the only *.routers.gguf of the folder.
Result<std::string> Beside(const std::string& model) {
  std::string own = model;
  if (EndsWith(own, ".gguf")) own.resize(own.size() - std::strlen(".gguf"));
  own += kSuffix;
  if (access(own.c_str(), R_OK) == 0) return own;
  const std::string folder = model.substr(0, model.rfind('/') + 1);
  std::string found;
  int n_found = 0;
  if (DIR* entries = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(entries)) {
      if (!EndsWith(entry->d_name, kSuffix)) continue;
      found = folder + entry->d_name;
      n_found++;
    }
    closedir(entries);
  }
  if (n_found == 1) return found;
  return Status(Code::kInvalidArgument,
                Format("REMOE_ROUTERS=default: %s router overlay (*%s) beside %s: give its path",
                       n_found == 0 ? "no" : "more than one", kSuffix, model.c_str()));
}

bool IsFinite(const Tensor& tensor, const std::vector<uint8_t>& bytes) {
  if (tensor.type != GGML_TYPE_F32) return true;
  for (size_t at = 0; at + sizeof(float) <= bytes.size(); at += sizeof(float)) {
    float value;
    std::memcpy(&value, &bytes[at], sizeof(value));
    if (!std::isfinite(value)) return false;
  }
  return true;
}

// The overlay's tensors by name, checked against the model.
Result<Overlay> Read(const std::string& path, const ModelFile& model) {
  const auto refuse = [&path](const std::string& why) {
    return Status(Code::kInvalidArgument, path + " " + why);
  };
  Result<ModelFile> file = ModelFile::Open(path);
  if (!file.ok()) return file.status();
  const ModelFile& overlay = file.value();
  if (overlay.Unsigned("remoe_edge.overlay.version") != kFormatVersion) {
    return refuse("is no router overlay that this version reads");
  }
  Result<std::string> own = FingerprintOf(model);
  if (!own.ok()) return own.status();
  if (overlay.architecture() != model.architecture() ||
      overlay.String("remoe_edge.overlay.base_fingerprint") != own.value()) {
    return refuse("was made for another base model than " + model.paths()[0]);
  }
  Overlay tensors;
  for (const Tensor& router : model.tensors()) {
    if (!IsRouter(router.name)) continue;
    const Tensor* tuned = overlay.Find(router.name);
    if (tuned == nullptr) return refuse("lacks " + router.name);
    const bool fits = tuned->type == router.type && tuned->n_bytes == router.n_bytes &&
                      std::equal(tuned->ne, tuned->ne + 4, router.ne);
    if (!fits) return refuse("has " + router.name + " in another type or shape than the model");
    std::vector<uint8_t>& bytes = tensors[router.name];
    bytes.resize(tuned->n_bytes);
    const std::string& shard = overlay.paths()[static_cast<size_t>(tuned->shard)];
    REMOE_RETURN_IF_ERROR(ReadBytes(shard, tuned->offset, tuned->n_bytes, bytes.data()));
    if (!IsFinite(router, bytes))
      return refuse("has values in " + router.name + " that are no numbers");
  }
  if (tensors.empty()) return refuse("has no routers for this model");
  return tensors;
}

// Private copies of those pages of a shard, which may be written until Seal().
Status MakePrivate(const std::string& path, const FileMapping& shard, const ByteRange& pages) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return Status::Io("cannot open " + path, errno);
  void* at = reinterpret_cast<void*>(shard.begin + pages.begin);
  const void* made = mmap(at, pages.end - pages.begin, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_FIXED, file, static_cast<off_t>(pages.begin));
  const int error_number = errno;
  close(file);
  if (made == MAP_FAILED) return Status::Io("cannot lay routers over " + path, error_number);
  return Status::Ok();
}

}  // namespace

Status LayRouters(const std::string& routers, const MappedModel& model) {
  if (routers.empty()) return Status::Ok();
  std::string path = routers;
  if (routers == "default") {
    Result<std::string> beside = Beside(model.file.paths()[0]);
    if (!beside.ok()) return beside.status();
    path = beside.value();
  }
  Result<Overlay> overlay = Read(path, model.file);
  if (!overlay.ok()) return overlay.status();
  std::map<int, std::vector<ByteRange>> places;  // by shard
  for (const auto& [name, bytes] : overlay.value()) {
    const Tensor& tensor = *model.file.Find(name);
    if (model.AddressOf(tensor) == 0) {
      return Status(Code::kNotSupported,
                    name + " is in no mapped file: routers cannot be laid over it");
    }
    places[tensor.shard].push_back({tensor.offset, tensor.offset + tensor.n_bytes});
  }
  for (const auto& [shard, ranges] : places) {
    const auto number = static_cast<size_t>(shard);
    for (const ByteRange& pages : PagesAround(ranges)) {
      REMOE_RETURN_IF_ERROR(MakePrivate(model.file.paths()[number], model.shards[number], pages));
    }
  }
  for (const auto& [name, bytes] : overlay.value()) {
    std::memcpy(reinterpret_cast<void*>(model.AddressOf(*model.file.Find(name))), bytes.data(),
                bytes.size());
  }
  for (const auto& [shard, ranges] : places) {
    for (const ByteRange& pages : PagesAround(ranges)) {
      mprotect(
          reinterpret_cast<void*>(model.shards[static_cast<size_t>(shard)].begin + pages.begin),
          pages.end - pages.begin, PROT_READ);
    }
  }
  LogInfo("tuned routers of " + path);
  return Status::Ok();
}

}  // namespace remoe::plugin

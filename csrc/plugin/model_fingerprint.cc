#include "plugin/model_fingerprint.h"

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>

#include <algorithm>
#include <vector>

#include "base/format.h"
#include "plugin/sha256.h"

namespace remoe::plugin {

namespace {

constexpr uint64_t kPieceBytes = 4096;

void AddText(const std::string& text, Sha256* digest) {
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = static_cast<uint8_t>(uint64_t{text.size()} >> (8 * i));
  digest->Add(length, sizeof(length));
  digest->Add(text.data(), text.size());
}

std::string Shape(const Tensor& tensor) {
  std::string shape = "[";
  for (uint32_t d = 0; d < tensor.n_dims; d++) {
    shape += Format("%s%llu", d > 0 ? ", " : "", static_cast<unsigned long long>(tensor.ne[d]));
  }
  return shape + "]";
}

}  // namespace

bool IsRouter(const std::string& name) {
  if (name.compare(0, 4, "blk.") != 0) return false;
  size_t end = 4;
  while (end < name.size() && end < 10 && name[end] >= '0' && name[end] <= '9') end++;
  if (end == 4 || (name[4] == '0' && end > 5)) return false;
  const std::string rest = name.substr(end);
  return rest == ".ffn_gate_inp.weight" || rest == ".ffn_gate_inp.bias" || rest == ".exp_probs_b" ||
         rest == ".exp_probs_b.bias";
}

Status ReadBytes(const std::string& path, uint64_t offset, uint64_t n_bytes, void* dest) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return Status::Io("cannot open " + path, errno);
  auto* at = static_cast<uint8_t*>(dest);
  while (n_bytes > 0) {
    const ssize_t n = pread(file, at, n_bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error_number = n < 0 ? errno : EIO;
      close(file);
      return Status::Io(Format("cannot read %s at offset %llu", path.c_str(),
                               static_cast<unsigned long long>(offset)),
                        error_number);
    }
    at += n;
    offset += static_cast<uint64_t>(n);
    n_bytes -= static_cast<uint64_t>(n);
  }
  close(file);
  return Status::Ok();
}

Result<std::string> FingerprintOf(const ModelFile& model) {
  std::vector<const Tensor*> sorted;
  for (const Tensor& tensor : model.tensors()) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const Tensor* a, const Tensor* b) { return a->name < b->name; });
  Sha256 digest;
  AddText(model.architecture(), &digest);
  uint8_t piece[kPieceBytes];
  for (const Tensor* tensor : sorted) {
    AddText(Format("%s %u ", tensor->name.c_str(), tensor->type) + Shape(*tensor), &digest);
    if (IsRouter(tensor->name)) continue;
    const std::string& path = model.paths()[static_cast<size_t>(tensor->shard)];
    const uint64_t n = std::min(kPieceBytes, tensor->n_bytes);
    for (const uint64_t offset : {tensor->offset, tensor->offset + tensor->n_bytes - n}) {
      REMOE_RETURN_IF_ERROR(ReadBytes(path, offset, n, piece));
      digest.Add(piece, n);
    }
  }
  return digest.Hex();
}

}  // namespace remoe::plugin

#include "gguf/virtual_file.h"

#include <errno.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <set>

#include "base/format.h"
#include "base/rounding.h"

// How an expert costs nothing to read.
//
// Every tensor begins at a multiple of the stream's buffer, because glibc seeks such a stream to a
// multiple of its buffer and reads from there: so a seek to a tensor reads nothing of its
// neighbours, and dense bytes arrive in pieces of that size. A seek into an expert's bytes lands at
// the end of the stream. llama.cpp asks, before each read, how many bytes are left, reads none
// then, and leaves its buffer, as large as the tensor, untouched and so without memory.

namespace remoe {
namespace {

void AppendU32(uint32_t value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendU64(uint64_t value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// The header's bytes for these tensors at these offsets in the data section. Keys about shards are
// left out: what llama.cpp sees is one file.
std::string WriteHeader(const ModelFile& model, const std::vector<uint64_t>& offsets) {
  constexpr uint32_t kU32 = 4;
  const std::string alignment_key = "general.alignment";
  uint64_t n_keys = 0;
  const std::string keys = model.KeyBytesWithout(
      [&](const std::string& name) {
        return name == alignment_key || name.compare(0, 6, "split.") == 0;
      },
      &n_keys);
  std::string header = "GGUF";
  AppendU32(model.version(), &header);
  AppendU64(model.tensors().size(), &header);
  AppendU64(n_keys + 1, &header);
  header += keys;
  AppendU64(alignment_key.size(), &header);
  header += alignment_key;
  AppendU32(kU32, &header);
  AppendU32(VirtualFile::kStreamBufferBytes, &header);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const Tensor& tensor = model.tensors()[i];
    AppendU64(tensor.name.size(), &header);
    header += tensor.name;
    AppendU32(tensor.n_dims, &header);
    for (uint32_t d = 0; d < tensor.n_dims; ++d) AppendU64(tensor.ne[d], &header);
    AppendU32(tensor.type, &header);
    AppendU64(offsets[i], &header);
  }
  return header;
}

uint64_t Align(uint64_t offset) {
  constexpr uint64_t kUnit = VirtualFile::kStreamBufferBytes;
  return RoundUp(offset, kUnit);
}

}  // namespace

Result<VirtualFile> VirtualFile::Make(const ModelFile* model, Overlay overlay, ReadAt read_at) {
  Result<std::vector<ExpertLayer>> layers = model->ExpertLayers();
  if (!layers.ok()) return layers.status();
  std::set<size_t> experts;
  for (const ExpertLayer& layer : layers.value()) {
    for (const ExpertMatrix& matrix : layer.matrices) experts.insert(matrix.tensor);
  }
  for (const auto& [name, bytes] : overlay) {
    const Tensor* tensor = model->Find(name);
    if (tensor == nullptr) {
      return Status(Code::kInvalidArgument,
                    "overlay tensor '" + name + "' is not in " + model->paths()[0]);
    }
    if (tensor->n_bytes != bytes.size() ||
        experts.count(static_cast<size_t>(tensor - model->tensors().data()))) {
      return Status(
          Code::kInvalidArgument,
          Format("overlay tensor '%s' has %zu bytes and cannot stand in for the %" PRIu64 " in %s",
                 name.c_str(), bytes.size(), tensor->n_bytes, model->paths()[0].c_str()));
    }
  }

  VirtualFile file;
  file.model_ = model;
  file.overlay_ = std::move(overlay);
  file.read_at_ = std::move(read_at);
  std::vector<uint64_t> offsets;
  uint64_t data_bytes = 0;
  for (const Tensor& tensor : model->tensors()) {
    offsets.push_back(data_bytes);
    // Sparse files can claim more than stdio can address.
    if (tensor.n_bytes > static_cast<uint64_t>(INT64_MAX) / 2 - data_bytes) {
      return Status(Code::kNotSupported,
                    model->paths()[0] + ": the tensors together exceed 2^62 bytes");
    }
    data_bytes = Align(data_bytes + tensor.n_bytes);
  }
  file.header_ = WriteHeader(*model, offsets);
  file.spans_.push_back({0, file.header_.size(), Span::kHeader, 0, 0, nullptr});
  const uint64_t data_begin = Align(file.header_.size());
  for (size_t i = 0; i < offsets.size(); ++i) {
    const Tensor& tensor = model->tensors()[i];
    Span span{data_begin + offsets[i], tensor.n_bytes, Span::kDense, tensor.shard,
              tensor.offset,           nullptr};
    const auto replaced = file.overlay_.find(tensor.name);
    if (experts.count(i)) {
      span.kind = Span::kExpert;
    } else if (replaced != file.overlay_.end()) {
      span.kind = Span::kOverlay;
      span.bytes = replaced->second.data();
    }
    file.spans_.push_back(span);
  }
  file.size_ = data_begin + data_bytes;
  return file;
}

struct VirtualFile::Cookie {
  VirtualFile* file;
  uint64_t position;

  static ssize_t Read(void* opaque, char* dest, size_t n) {
    auto* cookie = static_cast<Cookie*>(opaque);
    if (cookie->position >= cookie->file->size_) return 0;
    const Span& span = cookie->file->SpanAt(cookie->position);
    if (span.kind == Span::kExpert) return 0;
    // Up to the end of the span, or of the gap after it: a short read is no error to stdio.
    uint64_t end = span.begin + span.n_bytes;
    if (cookie->position >= end) {
      end = &span == &cookie->file->spans_.back() ? cookie->file->size_ : (&span)[1].begin;
    }
    n = std::min<uint64_t>(n, end - cookie->position);
    const int64_t got = cookie->file->Pread(cookie->position, reinterpret_cast<uint8_t*>(dest), n);
    if (got < 0) {
      errno = EIO;
      return -1;
    }
    cookie->position += static_cast<uint64_t>(got);
    return got;
  }

  static int Seek(void* opaque, off64_t* offset, int whence) {
    auto* cookie = static_cast<Cookie*>(opaque);
    VirtualFile* file = cookie->file;
    int64_t base = 0;
    if (whence == SEEK_CUR) base = static_cast<int64_t>(cookie->position);
    if (whence == SEEK_END) base = static_cast<int64_t>(file->size_);
    int64_t target = 0;
    if (__builtin_add_overflow(base, *offset, &target) || target < 0) {
      errno = EINVAL;
      return -1;
    }
    cookie->position = static_cast<uint64_t>(target);
    if (cookie->position < file->size_) {
      const Span& span = file->SpanAt(cookie->position);
      const uint64_t inside = cookie->position - span.begin;
      if (span.kind == Span::kExpert && inside < span.n_bytes) {
        file->expert_bytes_skipped_ += span.n_bytes - inside;
        cookie->position = file->size_;
      }
    }
    *offset = static_cast<off64_t>(cookie->position);
    return 0;
  }

  static int Close(void* opaque) {
    delete static_cast<Cookie*>(opaque);
    return 0;
  }
};

Result<std::FILE*> VirtualFile::OpenStream() {
  auto* cookie = new Cookie{this, 0};
  std::FILE* stream =
      fopencookie(cookie, "rb", {Cookie::Read, nullptr, Cookie::Seek, Cookie::Close});
  if (stream == nullptr) {
    const int error_number = errno;
    delete cookie;
    return Status::Io("cannot open a stream over " + model_->paths()[0], error_number);
  }
  stream_buffer_.resize(kStreamBufferBytes);
  setvbuf(stream, stream_buffer_.data(), _IOFBF, stream_buffer_.size());
  return stream;
}

const VirtualFile::Span& VirtualFile::SpanAt(uint64_t offset) const {
  const auto after =
      std::upper_bound(spans_.begin(), spans_.end(), offset,
                       [](uint64_t at, const Span& span) { return at < span.begin; });
  return *(after - 1);
}

int64_t VirtualFile::Pread(uint64_t offset, uint8_t* dest, uint64_t n) {
  if (!status_.ok()) return -1;
  if (offset >= size_) return 0;
  n = std::min(n, size_ - offset);
  uint64_t done = 0;
  for (const Span* span = &SpanAt(offset); done < n; ++span) {
    const uint64_t inside = offset + done - span->begin;
    if (inside < span->n_bytes) {
      const uint64_t piece = std::min(n - done, span->n_bytes - inside);
      switch (span->kind) {
        case Span::kHeader:
          std::memcpy(dest + done, header_.data() + inside, piece);
          break;
        case Span::kOverlay:
          std::memcpy(dest + done, span->bytes + inside, piece);
          break;
        case Span::kExpert:
          expert_bytes_skipped_ += piece;
          break;
        case Span::kDense:
          status_ = read_at_(span->shard, span->offset + inside, piece, dest + done);
          if (!status_.ok()) return -1;
          dense_bytes_read_ += piece;
          break;
      }
      done += piece;
    }
    const uint64_t gap_end = span == &spans_.back() ? size_ : span[1].begin;
    const uint64_t zeros = std::min(n - done, gap_end - (offset + done));
    std::memset(dest + done, 0, zeros);
    done += zeros;
  }
  return static_cast<int64_t>(done);
}

}  // namespace remoe

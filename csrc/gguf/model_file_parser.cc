// ModelFile::Open(): shards read, checked and joined.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <map>

#include "base/format.h"
#include "base/rounding.h"
#include "gguf/header_reader.h"
#include "gguf/model_file.h"
#include "gguf/types.h"
#include "gguf/value_types.h"

namespace remoe {
namespace {

// Far above any model, and low enough that bookkeeping for a hostile header stays in the tens of
// MiB.
constexpr uint64_t kMaxTensors = 1 << 17;
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxShards = 65535;
constexpr uint64_t kMaxAlignment = 1 << 24;
constexpr uint64_t kMaxKeyNameBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 63;  // what fits a ggml tensor

bool IsPrintableAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

std::string ShardSuffix(uint64_t number, uint64_t count) {
  return Format("-%05" PRIu64 "-of-%05" PRIu64 ".gguf", number + 1, count);
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

// Parses one shard into the fields of a ModelFile of its own.
class ModelFileParser {
 public:
  static Result<ModelFile> Shard(const std::string& path);
  // Appends the tensors of `shard` to `model`.
  static Status Join(ModelFile shard, ModelFile* model);
  // The files among `paths` that say that they are one of so many shards, by number.
  static std::map<uint64_t, std::string> ShardsAmong(const std::vector<std::string>& paths,
                                                     uint64_t count);

 private:
  explicit ModelFileParser(HeaderReader reader) : in_(std::move(reader)) {}
  Status Preamble();
  Status Keys();
  Status Value(const std::string& name, KeyPlace* place);
  Status Tensors();
  Status OneTensor(Tensor* tensor, uint64_t* offset);
  Status PlaceTensors(const std::vector<uint64_t>& offsets);

  HeaderReader in_;
  ModelFile model_;
  uint64_t n_tensors_ = 0;
  uint64_t keys_begin_ = 0;
  uint64_t keys_end_ = 0;
};

Result<ModelFile> ModelFileParser::Shard(const std::string& path) {
  Result<HeaderReader> reader = HeaderReader::Open(path);
  if (!reader.ok()) return reader.status();
  ModelFileParser parser(std::move(reader.value()));
  parser.model_.paths_ = {path};
  parser.model_.file_bytes_ = {parser.in_.file_bytes()};
  REMOE_RETURN_IF_ERROR(parser.Preamble());
  REMOE_RETURN_IF_ERROR(parser.Keys());
  REMOE_RETURN_IF_ERROR(parser.Tensors());
  parser.model_.key_bytes_ = parser.in_.Take(parser.keys_begin_, parser.keys_end_);
  return std::move(parser.model_);
}

Status ModelFileParser::Preamble() {
  uint32_t magic = 0;
  if (in_.file_bytes() < sizeof(magic))
    return in_.Corrupt("not a GGUF file: it has fewer than 4 bytes");
  REMOE_RETURN_IF_ERROR(in_.U32("the magic", &magic));
  if (std::memcmp(&magic, "GGUF", 4) != 0) {
    return in_.Corrupt("not a GGUF file: it starts with " +
                       Quote(std::string(reinterpret_cast<const char*>(&magic), 4)));
  }
  REMOE_RETURN_IF_ERROR(in_.U32("the version", &model_.version_));
  const std::string& path = model_.paths_[0];
  if (model_.version_ != 0 && (model_.version_ & 0xffff) == 0) {
    return Status(Code::kNotSupported, path + " is a big-endian GGUF; convert it to little-endian");
  }
  if (model_.version_ != 2 && model_.version_ != 3) {
    return Status(Code::kNotSupported,
                  Format("%s is GGUF version %" PRIu32 "; versions 2 and 3 are supported",
                         path.c_str(), model_.version_));
  }
  REMOE_RETURN_IF_ERROR(in_.U64("the tensor count", &n_tensors_));
  REMOE_RETURN_IF_ERROR(in_.U64("the key count", &model_.n_keys_));
  if (n_tensors_ > kMaxTensors) {
    return in_.Corrupt(
        Format("%" PRIu64 " tensors announced, more than any model has", n_tensors_));
  }
  if (model_.n_keys_ > kMaxKeys) {
    return in_.Corrupt(
        Format("%" PRIu64 " keys announced, more than any model has", model_.n_keys_));
  }
  return Status::Ok();
}

Status ModelFileParser::Keys() {
  keys_begin_ = in_.position();
  for (uint64_t i = 0; i < model_.n_keys_; ++i) {
    KeyPlace place;
    place.begin = in_.position() - keys_begin_;
    std::string name;
    REMOE_RETURN_IF_ERROR(in_.String("a key's name", kMaxKeyNameBytes, &name));
    if (name.empty() || !IsPrintableAscii(name)) {
      return in_.Corrupt("a key's name is not printable ASCII: " + Quote(name));
    }
    REMOE_RETURN_IF_ERROR(Value(name, &place));
    place.end = in_.position() - keys_begin_;
    if (!model_.keys_.emplace(name, place).second) {
      return in_.Corrupt("key " + Quote(name) + " occurs twice");
    }
  }
  keys_end_ = in_.position();
  return Status::Ok();
}

Status ModelFileParser::Value(const std::string& name, KeyPlace* place) {
  const std::string what = "the value of key " + Quote(name);
  REMOE_RETURN_IF_ERROR(in_.U32(what.c_str(), &place->type));
  if (place->type == kArray) {
    place->is_array = true;
    REMOE_RETURN_IF_ERROR(in_.U32(what.c_str(), &place->type));
    REMOE_RETURN_IF_ERROR(in_.U64(what.c_str(), &place->n_elements));
    if (place->type == kArray)
      return in_.Corrupt(what + " is an array of arrays, which no model uses");
  }
  if (place->type >= kValueTypes) {
    return in_.Corrupt(Format("%s has the unknown type %" PRIu32, what.c_str(), place->type));
  }
  place->value = in_.position() - keys_begin_;
  if (place->type == kString) {
    for (uint64_t i = 0; i < place->n_elements; ++i) {
      uint64_t n_bytes = 0;
      REMOE_RETURN_IF_ERROR(in_.U64(what.c_str(), &n_bytes));
      REMOE_RETURN_IF_ERROR(in_.Skip(what.c_str(), n_bytes));
    }
    return Status::Ok();
  }
  uint64_t n_bytes = 0;
  if (__builtin_mul_overflow(place->n_elements, ScalarBytes(place->type), &n_bytes)) {
    return in_.Corrupt(Format("%s has %" PRIu64 " elements", what.c_str(), place->n_elements));
  }
  if (name == "general.alignment") {
    uint32_t alignment = 0;
    if (place->is_array || place->type != kU32)
      return in_.Corrupt(what + " is not a 32-bit number");
    REMOE_RETURN_IF_ERROR(in_.U32(what.c_str(), &alignment));
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > kMaxAlignment) {
      return in_.Corrupt(
          Format("general.alignment is %" PRIu32 ", not a power of two up to 16 MiB", alignment));
    }
    model_.alignment_ = alignment;
    return Status::Ok();
  }
  return in_.Skip(what.c_str(), n_bytes);
}

Status ModelFileParser::Tensors() {
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    Tensor tensor;
    uint64_t offset = 0;
    REMOE_RETURN_IF_ERROR(OneTensor(&tensor, &offset));
    if (!model_.by_name_.emplace(tensor.name, model_.tensors_.size()).second) {
      return in_.Corrupt("tensor " + Quote(tensor.name) + " occurs twice");
    }
    model_.tensors_.push_back(std::move(tensor));
    offsets.push_back(offset);
  }
  return PlaceTensors(offsets);
}

Status ModelFileParser::OneTensor(Tensor* tensor, uint64_t* offset) {
  REMOE_RETURN_IF_ERROR(in_.String("a tensor's name", kMaxTensorNameBytes, &tensor->name));
  if (tensor->name.empty() || !IsPrintableAscii(tensor->name)) {
    return in_.Corrupt("a tensor's name is not printable ASCII: " + Quote(tensor->name));
  }
  const std::string what = "tensor " + Quote(tensor->name);
  REMOE_RETURN_IF_ERROR(in_.U32(what.c_str(), &tensor->n_dims));
  if (tensor->n_dims > 4) {
    return in_.Corrupt(Format("%s has %" PRIu32 " dimensions, at most 4 are allowed", what.c_str(),
                              tensor->n_dims));
  }
  for (uint32_t d = 0; d < tensor->n_dims; ++d) {
    REMOE_RETURN_IF_ERROR(in_.U64(what.c_str(), &tensor->ne[d]));
    if (tensor->ne[d] == 0)
      return in_.Corrupt(Format("%s: dimension %" PRIu32 " is zero", what.c_str(), d));
  }
  REMOE_RETURN_IF_ERROR(in_.U32(what.c_str(), &tensor->type));
  const TypeTraits* traits = FindType(tensor->type);
  if (traits == nullptr) {
    return in_.Corrupt(Format("%s has the unknown type %" PRIu32, what.c_str(), tensor->type));
  }
  if (tensor->ne[0] % traits->block_weights != 0) {
    return in_.Corrupt(Format("%s: rows of %" PRIu64 " weights are no multiple of the %" PRIu32
                              " in a block of %s",
                              what.c_str(), tensor->ne[0], traits->block_weights, traits->name));
  }
  // Signed limit: other readers of the format count weights and bytes in int64_t.
  int64_t weights = 1, bytes = 0;
  bool overflow = false;
  for (uint64_t extent : tensor->ne) overflow |= __builtin_mul_overflow(weights, extent, &weights);
  if (!overflow) {
    overflow = __builtin_mul_overflow(weights / static_cast<int64_t>(traits->block_weights),
                                      static_cast<int64_t>(traits->block_bytes), &bytes);
  }
  if (overflow) return in_.Corrupt(what + ": its dimensions overflow 63 bits");
  tensor->n_bytes = static_cast<uint64_t>(bytes);
  REMOE_RETURN_IF_ERROR(in_.U64(what.c_str(), offset));
  if (*offset % model_.alignment_ != 0) {
    return in_.Corrupt(Format("%s: its offset %" PRIu64 " is no multiple of the alignment %" PRIu64,
                              what.c_str(), *offset, model_.alignment_));
  }
  return Status::Ok();
}

// Makes offsets absolute once the data section's start is known, and checks the extents.
Status ModelFileParser::PlaceTensors(const std::vector<uint64_t>& offsets) {
  const uint64_t alignment = model_.alignment_;
  const uint64_t data_begin = RoundUp(in_.position(), alignment);
  std::vector<const Tensor*> order;
  for (size_t i = 0; i < offsets.size(); ++i) {
    Tensor& tensor = model_.tensors_[i];
    uint64_t end = 0;
    if (__builtin_add_overflow(data_begin, offsets[i], &tensor.offset) ||
        __builtin_add_overflow(tensor.offset, tensor.n_bytes, &end) || end > in_.file_bytes()) {
      return in_.Corrupt(Format(
          "tensor %s: %" PRIu64 " bytes at %" PRIu64 " + %" PRIu64 " lie beyond the file's %" PRIu64
          "; it is damaged or was not downloaded whole",
          Quote(tensor.name).c_str(), tensor.n_bytes, data_begin, offsets[i], in_.file_bytes()));
    }
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->n_bytes > order[i]->offset) {
      return in_.Corrupt("tensors " + Quote(order[i - 1]->name) + " and " + Quote(order[i]->name) +
                         " overlap");
    }
  }
  return Status::Ok();
}

Status ModelFileParser::Join(ModelFile shard, ModelFile* model) {
  const int number = static_cast<int>(model->paths_.size());
  for (Tensor& tensor : shard.tensors_) {
    tensor.shard = number;
    if (!model->by_name_.emplace(tensor.name, model->tensors_.size()).second) {
      return Status(Code::kCorrupt, shard.paths_[0] + ": tensor " + Quote(tensor.name) +
                                        " occurs in an earlier shard too");
    }
    model->tensors_.push_back(std::move(tensor));
  }
  if (model->tensors_.size() > kMaxTensors) {
    return Status(Code::kCorrupt,
                  shard.paths_[0] + ": the shards so far hold more tensors than any model has");
  }
  model->paths_.push_back(shard.paths_[0]);
  model->file_bytes_.push_back(shard.file_bytes_[0]);
  return Status::Ok();
}

std::map<uint64_t, std::string> ModelFileParser::ShardsAmong(const std::vector<std::string>& paths,
                                                             uint64_t count) {
  std::map<uint64_t, std::string> found;
  for (const std::string& path : paths) {
    const Result<ModelFile> file = Shard(path);
    if (!file.ok() || file.value().Unsigned("split.count") != count) continue;
    const std::optional<uint64_t> number = file.value().Unsigned("split.no");
    if (number && *number < count) found.emplace(*number, path);
  }
  return found;
}

Result<ModelFile> ModelFile::Open(const std::string& path, const std::vector<std::string>& others) {
  Result<ModelFile> first = ModelFileParser::Shard(path);
  if (!first.ok()) return first;
  ModelFile& model = first.value();
  const uint64_t count = model.Unsigned("split.count").value_or(0);
  if (model.keys_.count("split.count") && (!model.Unsigned("split.count") || count > kMaxShards)) {
    return Status(Code::kCorrupt, path + ": key 'split.count' is not a number up to 65535");
  }
  REMOE_RETURN_IF_ERROR(model.ReadExpertSums());
  if (count <= 1) return first;

  const std::optional<uint64_t> number = model.Unsigned("split.no");
  if (!number || *number >= count) {
    return Status(Code::kCorrupt, Format("%s: key 'split.no' is not a shard number below %" PRIu64,
                                         path.c_str(), count));
  }
  const bool named = EndsWith(path, ShardSuffix(*number, count));
  const std::map<uint64_t, std::string> among =
      named ? std::map<uint64_t, std::string>() : ModelFileParser::ShardsAmong(others, count);
  if (!named && among.size() < count) {
    return Status(Code::kInvalidArgument,
                  Format("%s is shard %" PRIu64 " of %" PRIu64
                         ", and shards are found by name: this one's must end in %s",
                         path.c_str(), *number + 1, count, ShardSuffix(*number, count).c_str()));
  }
  const std::string stem =
      named ? path.substr(0, path.size() - ShardSuffix(*number, count).size()) : path;
  if (*number != 0) {
    return Status(Code::kInvalidArgument,
                  Format("%s is shard %" PRIu64 " of %" PRIu64 "; give the first, %s", path.c_str(),
                         *number + 1, count, (stem + ShardSuffix(0, count)).c_str()));
  }
  for (uint64_t i = 1; i < count; ++i) {
    const std::string shard_path = named ? stem + ShardSuffix(i, count) : among.at(i);
    Result<ModelFile> shard = ModelFileParser::Shard(shard_path);
    if (!shard.ok()) {
      return Status(shard.status().code(), Format("shard %" PRIu64 " of %" PRIu64 ": %s", i + 1,
                                                  count, shard.status().message().c_str()));
    }
    if (shard.value().Unsigned("split.no") != i ||
        shard.value().Unsigned("split.count").value_or(count) != count) {
      return Status(Code::kCorrupt,
                    Format("%s does not say that it is shard %" PRIu64 " of %" PRIu64,
                           shard_path.c_str(), i + 1, count));
    }
    const std::string architecture = shard.value().architecture();
    if (!architecture.empty() && architecture != model.architecture()) {
      return Status(Code::kCorrupt, shard_path + " belongs to another model: its architecture is " +
                                        Quote(architecture));
    }
    REMOE_RETURN_IF_ERROR(ModelFileParser::Join(std::move(shard.value()), &model));
  }
  const std::optional<uint64_t> announced = model.Unsigned("split.tensors.count");
  if (!announced || *announced != model.tensors_.size()) {
    return Status(
        Code::kCorrupt,
        Format("%s: the shards hold %zu tensors, and key 'split.tensors.count' %s; they are "
               "not of one model",
               path.c_str(), model.tensors_.size(),
               announced ? Format("says %" PRIu64, *announced).c_str() : "is missing"));
  }
  return first;
}

}  // namespace remoe

#include "gguf/loadable.h"

#include <algorithm>
#include <cinttypes>

#include "base/format.h"
#include "gguf/header_reader.h"

namespace remoe {
namespace {

constexpr uint64_t kMaxLayers = 512;  // LLAMA_MAX_LAYERS
// Of tokens of context too: llama-cpp-python reserves four bytes for each whenever it reads a text.
constexpr uint64_t kMostOfAnything = 1 << 27;
constexpr uint64_t kMaxExperts = 1024;  // LLAMA_MAX_EXPERTS

// Keys that hold one value for all layers or one for each.
constexpr const char* kPerLayerKeys[] = {"feed_forward_length",
                                         "attention.head_count",
                                         "attention.head_count_kv",
                                         "expert_used_count",
                                         "expert_feed_forward_length",
                                         "attention.recurrent_layers",
                                         "attention.sliding_window_layers"};

// The number after "blk." of a tensor's name, nullopt if it has none.
std::optional<uint64_t> BlockOf(const std::string& name) {
  if (name.compare(0, 4, "blk.") != 0) return std::nullopt;
  uint64_t block = 0;
  size_t end = 4;
  while (end < name.size() && end < 12 && name[end] >= '0' && name[end] <= '9') {
    block = block * 10 + static_cast<uint64_t>(name[end++] - '0');
  }
  if (end == 4 || end == name.size() || name[end] != '.') return std::nullopt;
  return block;
}

Status CheckRequired(const Metadata& keys) {
  for (const char* name : {"context_length", "embedding_length", "block_count"}) {
    if (!keys.Has(name)) return keys.Wrong(name, "is missing; every model has one");
    if (!keys.Unsigned(name)) return keys.Wrong(name, "is not a number of at least 0");
    if (keys.UnsignedOr(name, 0) == 0) return keys.Wrong(name, "is 0");
    if (keys.UnsignedOr(name, 0) > kMostOfAnything) {
      return keys.Wrong(
          name, Format("is %" PRIu64 ", more than any model has", keys.UnsignedOr(name, 0)));
    }
  }
  return Status::Ok();
}

}  // namespace

Status CheckNoAdapter(const ModelFile& file) {
  if (file.String("general.type") != "adapter") return Status::Ok();
  const std::string kind = file.String("adapter.type").value_or("of a kind it does not name");
  return Status(Code::kInvalidArgument, file.paths()[0] + " is an adapter (" + Quote(kind) +
                                            "), not a model: name the model that it was made for");
}

Status CheckLoadable(const ModelFile& file) {
  const Metadata keys(file);
  const std::string& path = file.paths()[0];
  if (keys.architecture().empty()) {
    return Status(Code::kCorrupt,
                  path + ": key 'general.architecture' is missing or no text; it is no model");
  }
  // llama.cpp reads it up to a zero byte, and would then ask for other keys than this.
  if (!std::all_of(keys.architecture().begin(), keys.architecture().end(),
                   [](char c) { return c > 0x20 && c < 0x7f; })) {
    return Status(Code::kCorrupt, path + ": key 'general.architecture' is " +
                                      Quote(keys.architecture()) + ", which names no architecture");
  }
  REMOE_RETURN_IF_ERROR(CheckNoAdapter(file));
  REMOE_RETURN_IF_ERROR(CheckLayers(keys));
  REMOE_RETURN_IF_ERROR(CheckExperts(keys));
  REMOE_RETURN_IF_ERROR(CheckAttention(keys));
  REMOE_RETURN_IF_ERROR(CheckRecurrence(keys));
  REMOE_RETURN_IF_ERROR(CheckVocabulary(keys));
  return CheckTensorTypes(keys);
}

Status CheckLayers(const Metadata& keys) {
  REMOE_RETURN_IF_ERROR(CheckRequired(keys));
  const uint64_t n_layers = keys.UnsignedOr("block_count", 0);
  if (n_layers > kMaxLayers) {
    return keys.Wrong("block_count", Format("is %" PRIu64 "; llama.cpp takes up to %" PRIu64,
                                            n_layers, kMaxLayers));
  }
  const uint64_t n_predictors = keys.UnsignedOr("nextn_predict_layers", 0);
  if (n_predictors >= n_layers) {
    return keys.Wrong("nextn_predict_layers",
                      Format("is %" PRIu64 " of %" PRIu64 " layers: none would be left to compute",
                             n_predictors, n_layers));
  }
  for (const char* name : kPerLayerKeys) {
    const auto values = keys.PerLayer(name, n_layers, 0);
    if (!values.ok()) return values.status();
  }
  for (const Tensor& tensor : keys.file().tensors()) {
    const auto block = BlockOf(tensor.name);
    if (block && *block >= n_layers) {
      return keys.Wrong("block_count", Format("is %" PRIu64 ", and there is a tensor '%s'",
                                              n_layers, tensor.name.c_str()));
    }
  }
  // Steps between layers of a kind: llama.cpp divides by them.
  for (const char* name : {"interleave_moe_layer_step", "full_attention_interval",
                           "experts_per_group", "moe_every_n_layers"}) {
    if (keys.Has(name) && keys.UnsignedOr(name, 1) == 0) return keys.Wrong(name, "is 0");
  }
  return Status::Ok();
}

Status CheckExperts(const Metadata& keys) {
  const uint64_t n_layers = keys.UnsignedOr("block_count", 0);
  const uint64_t n_experts = keys.UnsignedOr("expert_count", 0);
  const uint64_t n_groups = keys.UnsignedOr("expert_group_count", 0);
  const auto used = keys.PerLayer("expert_used_count", n_layers, 0);
  if (!used.ok()) return used.status();
  const uint64_t most = *std::max_element(used.value().begin(), used.value().end());

  const auto layers = keys.file().ExpertLayers();
  if (!layers.ok()) return layers.status();
  if (n_experts > kMaxExperts) {
    return keys.Wrong("expert_count", Format("is %" PRIu64 "; llama.cpp takes up to %" PRIu64,
                                             n_experts, kMaxExperts));
  }
  if (n_experts == 0 && !layers.value().empty()) {
    return keys.Wrong("expert_count",
                      Format("is missing or 0, and block %d has experts", layers.value()[0].block));
  }
  if (most > n_experts) {
    return keys.Wrong("expert_used_count",
                      Format("is %" PRIu64 " of %" PRIu64 " experts", most, n_experts));
  }
  if (n_experts > 0 && most == 0) {
    return keys.Wrong("expert_used_count",
                      Format("is missing or 0, and there are %" PRIu64 " experts", n_experts));
  }
  // The graph of most takes the first layer's number and then each layer's own.
  if (!keys.IsOneOf({"granite_swa", "nemotron_h_moe"}) && most > used.value()[0]) {
    return keys.Wrong("expert_used_count",
                      Format("is %" PRIu64 " in one layer and %" PRIu64
                             " in the first; architecture '%s' uses as many in all",
                             most, used.value()[0], keys.architecture().c_str()));
  }
  for (const ExpertLayer& layer : layers.value()) {
    if (static_cast<uint64_t>(layer.n_experts) != n_experts) {
      return keys.Wrong(
          "expert_count",
          Format("is %" PRIu64 ", and tensor '%s' has %d experts", n_experts,
                 keys.file().tensors()[layer.matrices[0].tensor].name.c_str(), layer.n_experts));
    }
    if (used.value()[static_cast<size_t>(layer.block)] == 0) {
      return keys.Wrong("expert_used_count",
                        Format("is 0 for block %d, which has experts", layer.block));
    }
  }
  for (uint64_t i = 0; i < n_layers; ++i) {
    const auto has = [&](const char* part) {
      return keys.file().Find(Format("blk.%" PRIu64 ".ffn_%s_shexp.weight", i, part)) != nullptr;
    };
    if (has("up") == has("down")) continue;
    return Status(Code::kCorrupt,
                  Format("%s: tensor 'blk.%" PRIu64 ".ffn_%s_shexp.weight' is missing",
                         keys.file().paths()[0].c_str(), i, has("up") ? "down" : "up"));
  }
  if (n_groups > 0 && n_groups >= n_experts) {
    return keys.Wrong("expert_group_count",
                      Format("is %" PRIu64 " for %" PRIu64 " experts", n_groups, n_experts));
  }
  if (n_groups > 1) {
    const uint64_t n_used = keys.UnsignedOr("expert_group_used_count", 0);
    if (n_experts % n_groups != 0) {
      return keys.Wrong(
          "expert_group_count",
          Format("is %" PRIu64 ", which does not divide %" PRIu64 " experts", n_groups, n_experts));
    }
    if (n_used == 0 || n_used >= n_groups) {
      return keys.Wrong("expert_group_used_count",
                        Format("is %" PRIu64 " of %" PRIu64 " groups", n_used, n_groups));
    }
    // A group is scored by its two best experts.
    if (n_experts / n_groups < 2) {
      return keys.Wrong("expert_group_count",
                        Format("is %" PRIu64 " for %" PRIu64 " experts: fewer than two in a group",
                               n_groups, n_experts));
    }
  }
  if (keys.Has("expert_gating_func")) {
    const uint64_t gating = keys.UnsignedOr("expert_gating_func", 0);
    if (gating > 4) {
      return keys.Wrong("expert_gating_func",
                        Format("is %" PRIu64 "; llama.cpp knows 1 to 4", gating));
    }
  }
  // These take the function from the key and have no default of their own.
  if (!layers.value().empty() && keys.UnsignedOr("expert_gating_func", 0) == 0 &&
      keys.IsOneOf({"bailingmoe2", "bailingmoe3", "deepseek32", "deepseek4", "dots1", "dots3note",
                    "exaone-moe", "kimi-k3", "kimi-linear", "lfm2moe", "minimax-m2", "minimax-m3",
                    "smallthinker"})) {
    return keys.Wrong("expert_gating_func", "is missing or 0, and its architecture has no default");
  }
  return Status::Ok();
}

}  // namespace remoe

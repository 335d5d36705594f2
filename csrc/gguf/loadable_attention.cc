// Heads, rotary positions and norms: what the graph reshapes and rotates by.
#include <algorithm>
#include <cinttypes>
#include <cmath>

#include "base/format.h"
#include "gguf/header_reader.h"
#include "gguf/loadable.h"

namespace remoe {
namespace {

constexpr uint64_t kMaxHeads = 1 << 16;
constexpr uint64_t kMaxHeadSize = 1 << 16;
constexpr uint64_t kMaxWindow = 1 << 30;

// Architectures whose graph asserts that keys, values and rotated dimensions are of one size.
const std::vector<const char*>& RotatesWholeHeads() {
  static const std::vector<const char*> names = {
      "apertus",  "arcee",        "arctic",       "baichuan",       "chameleon",  "codeshell",
      "cogvlm",   "cohere2moe",   "dbrx",         "deci",           "deepseek",   "dots1",
      "dream",    "ernie4_5",     "ernie4_5-moe", "exaone",         "exaone-moe", "exaone4",
      "falcon",   "granite",      "granitemoe",   "grok",           "grovemoe",   "hunyuan-moe",
      "hy_v3",    "internlm2",    "jais2",        "llada",          "llada-moe",  "llama",
      "llama4",   "maincoder",    "mellum",       "mistral3",       "nemotron",   "olmo",
      "olmo2",    "olmoe",        "orion",        "pangu-embedded", "qwen2",      "qwen2moe",
      "qwen2vl",  "qwen3",        "qwen3moe",     "qwen3vl",        "qwen3vlmoe", "rnd1",
      "seed_oss", "smallthinker", "smollm3",      "starcoder2",     "talkie",     "xverse"};
  return names;
}

// Those that assert only that keys and values are of one size.
const std::vector<const char*>& KeysAsLongAsValues() {
  static const std::vector<const char*> names = {
      "afmoe",         "bailingmoe2", "bitnet",     "bloom",          "chatglm",    "cohere2",
      "command-r",     "gemma4",      "glm4",       "glm4moe",        "gpt2",       "gptneox",
      "granitehybrid", "jais",        "laguna",     "maple",          "minimax-01", "minimax-m2",
      "minimax-m3",    "mpt",         "nemotron_h", "nemotron_h_moe", "openelm",    "phi2",
      "phi3",          "phimoe",      "qwen",       "qwen35",         "qwen35moe",  "qwen3next",
      "qwen4exp",      "refact",      "stablelm",   "starcoder"};
  return names;
}

// Those whose layers may have a sliding window, with head sizes of their own.
const std::vector<const char*>& SlidingWindows() {
  static const std::vector<const char*> names = {"afmoe",   "cohere2", "cohere2moe",  "exaone-moe",
                                                 "exaone4", "gemma3",  "gemma4",      "gpt-oss",
                                                 "llama4",  "mellum",  "smallthinker"};
  return names;
}

// Layers of these may have no attention, or none of the usual kind.
bool IsHybrid(const Metadata& keys) {
  return keys.Has("ssm.conv_kernel") || keys.Has("shortconv.l_cache") ||
         keys.Has("wkv.head_size") || keys.Has("kda.head_dim");
}

Status CheckHeadCounts(const Metadata& keys, uint64_t n_layers, uint64_t* n_head) {
  const auto heads = keys.PerLayer("attention.head_count", n_layers, 0);
  if (!heads.ok()) return heads.status();
  *n_head = heads.value()[0];
  for (uint64_t i = 0; i < n_layers; ++i) {
    const uint64_t n = heads.value()[i];
    if (n > kMaxHeads) {
      return keys.Wrong("attention.head_count",
                        Format("is %" PRIu64 ", more than any model has", n));
    }
    if (n == 0 && !IsHybrid(keys) && !keys.IsOneOf({"deci"})) {
      return keys.Wrong("attention.head_count", Format("is missing or 0 for block %" PRIu64, i));
    }
  }
  if (!keys.Has("attention.head_count_kv")) return Status::Ok();
  const auto kv = keys.PerLayer("attention.head_count_kv", n_layers, 0);
  if (!kv.ok()) return kv.status();
  for (uint64_t i = 0; i < n_layers; ++i) {
    const uint64_t n = kv.value()[i], all = heads.value()[i];
    if (n == 0 && !IsHybrid(keys) && !keys.IsOneOf({"deci"})) {
      return keys.Wrong("attention.head_count_kv", Format("is 0 for block %" PRIu64, i));
    }
    if (n > all && all > 0) {
      return keys.Wrong("attention.head_count_kv",
                        Format("is %" PRIu64 " for %" PRIu64 " heads", n, all));
    }
    if (n > 0 && all % n != 0) {
      return keys.Wrong("attention.head_count_kv",
                        Format("is %" PRIu64 ", which does not divide %" PRIu64 " heads", n, all));
    }
  }
  return Status::Ok();
}

// `suffix` is "" or "_swa", whose sizes are those of layers with a sliding window.
Status CheckHeadSizes(const Metadata& keys, const std::string& suffix, uint64_t key_default,
                      uint64_t value_default, uint64_t rope_default) {
  const std::string key_name = "attention.key_length" + suffix;
  const std::string value_name = "attention.value_length" + suffix;
  const std::string rope_name = "rope.dimension_count" + suffix;
  const uint64_t key = keys.UnsignedOr(key_name, key_default);
  const uint64_t value = keys.UnsignedOr(value_name, value_default);
  const uint64_t rope = keys.UnsignedOr(rope_name, rope_default);
  if (key == 0 || key > kMaxHeadSize) {
    return keys.Wrong(key_name, Format("gives heads of %" PRIu64, key));
  }
  if (value == 0 || value > kMaxHeadSize) {
    return keys.Wrong(value_name, Format("gives heads of %" PRIu64, value));
  }
  const bool whole = keys.IsOneOf(RotatesWholeHeads());
  if (key != value && (whole || keys.IsOneOf(KeysAsLongAsValues()))) {
    return keys.Wrong(keys.Has(key_name) ? key_name : value_name,
                      Format("is at odds: keys of %" PRIu64 " and values of %" PRIu64
                             " in architecture '%s', where they are of one size",
                             key, value, keys.architecture().c_str()));
  }
  if (whole && rope != key) {
    return keys.Wrong(rope_name, Format("is %" PRIu64 " for heads of %" PRIu64
                                        "; in architecture '%s' they are equal",
                                        rope, key, keys.architecture().c_str()));
  }
  // Nemotron's attention takes no notice of it. Of 0 dimensions the angles are computed for ever.
  if (!keys.IsOneOf({"nemotron_h", "nemotron_h_moe"}) &&
      (rope == 0 || rope > key || rope % 2 != 0)) {
    return keys.Wrong(rope_name, Format("is %" PRIu64 " for heads of %" PRIu64
                                        ": it must be even, above 0 and no more",
                                        rope, key));
  }
  return Status::Ok();
}

// Multi-head latent attention keeps one compressed head for all.
Status CheckLatent(const Metadata& keys, uint64_t n_layers) {
  const uint64_t key = keys.UnsignedOr("attention.key_length_mla", 0);
  const uint64_t value = keys.UnsignedOr("attention.value_length_mla", 0);
  if (key == 0 && value == 0) {
    if (keys.architecture() != "deepseek2") return Status::Ok();
    // Uncompressed, each head has keys of its own, part of them rotated.
    const auto heads = keys.PerLayer("attention.head_count", n_layers, 0);
    if (!heads.ok()) return heads.status();
    const auto own = keys.PerLayer("attention.head_count_kv", n_layers, heads.value()[0]);
    if (!own.ok()) return own.status();
    if (own.value() != heads.value()) {
      return keys.Wrong("attention.head_count_kv",
                        "differs from head_count, and there are no keys "
                        "of multi-head latent attention");
    }
    const uint64_t whole = keys.UnsignedOr("attention.key_length", 0);
    if (keys.UnsignedOr("rope.dimension_count", whole) >= whole) {
      return keys.Wrong("rope.dimension_count", "leaves no dimension that is not rotated");
    }
    return Status::Ok();
  }
  if (key == 0 || value == 0) {
    return keys.Wrong(key == 0 ? "attention.key_length_mla" : "attention.value_length_mla",
                      "is missing or 0, and the other of the two is there");
  }
  const auto kv = keys.PerLayer("attention.head_count_kv", n_layers, 0);
  if (!kv.ok()) return kv.status();
  for (const uint64_t n : kv.value()) {
    if (n != 1) {
      return keys.Wrong("attention.head_count_kv",
                        Format("is %" PRIu64 ", where multi-head latent attention has 1", n));
    }
  }
  const uint64_t rope = keys.UnsignedOr("rope.dimension_count", key);
  const uint64_t rank = keys.UnsignedOr("attention.kv_lora_rank", 0);
  if (keys.IsOneOf({"deepseek2", "deepseek32", "glm-dsa", "mistral4"}) &&
      (keys.UnsignedOr("attention.key_length", 0) != rank + rope ||
       keys.UnsignedOr("attention.value_length", 0) != rank)) {
    return keys.Wrong("attention.key_length",
                      Format("and value_length are %" PRIu64 " and %" PRIu64
                             ", where a rank of %" PRIu64 " and %" PRIu64 " rotated make them",
                             keys.UnsignedOr("attention.key_length", 0),
                             keys.UnsignedOr("attention.value_length", 0), rank, rope));
  }
  if (rope >= key) {
    return keys.Wrong("rope.dimension_count",
                      Format("is %" PRIu64 " of heads of %" PRIu64, rope, key));
  }
  return Status::Ok();
}

// Rows of the projections against heads times their size. llama.cpp compares only some of them.
Status CheckProjections(const Metadata& keys, uint64_t n_layers) {
  if (keys.Has("attention.key_length_swa") || keys.Has("attention.key_length_mla")) {
    return Status::Ok();
  }
  const auto heads = keys.PerLayer("attention.head_count", n_layers, 0);
  if (!heads.ok()) return heads.status();
  const auto kv = keys.Has("attention.head_count_kv")
                      ? keys.PerLayer("attention.head_count_kv", n_layers, 0)
                      : heads;
  if (!kv.ok()) return kv.status();
  if (heads.value()[0] == 0) return Status::Ok();
  const uint64_t size = keys.UnsignedOr("embedding_length", 0) / heads.value()[0];
  const uint64_t key = keys.UnsignedOr("attention.key_length", size);
  const uint64_t value = keys.UnsignedOr("attention.value_length", size);
  const bool is_hybrid = IsHybrid(keys);
  for (uint64_t i = 0; i < n_layers; ++i) {
    const std::string all = Format("blk.%" PRIu64 ".attn_qkv.weight", i);
    const Tensor* joined = is_hybrid ? nullptr : keys.file().Find(all);
    const uint64_t joined_rows = heads.value()[i] * key + kv.value()[i] * (key + value);
    if (joined != nullptr && joined->n_dims == 2 && joined->ne[1] != joined_rows) {
      return keys.Wrong("attention.head_count",
                        Format("and its like make %" PRIu64 " rows, and tensor '%s' has %" PRIu64,
                               joined_rows, all.c_str(), joined->ne[1]));
    }
    const struct {
      char part;
      const char* length;
      uint64_t rows;
    } projections[] = {{'q', "attention.key_length", heads.value()[i] * key},
                       {'k', "attention.key_length", kv.value()[i] * key},
                       {'v', "attention.value_length", kv.value()[i] * value}};
    for (const auto& each : projections) {
      const std::string name = Format("blk.%" PRIu64 ".attn_%c.weight", i, each.part);
      const Tensor* tensor = keys.file().Find(name);
      if (tensor == nullptr || tensor->n_dims != 2 || tensor->ne[1] == each.rows) continue;
      if (each.part == 'q' && tensor->ne[1] == 2 * each.rows &&
          keys.IsOneOf({"qwen35", "qwen35moe", "qwen3next", "qwen4exp"})) {
        continue;  // with a gate
      }
      return keys.Wrong(each.length, Format("and the head counts make %" PRIu64
                                            " rows, and tensor '%s' has %" PRIu64,
                                            each.rows, name.c_str(), tensor->ne[1]));
    }
  }
  return Status::Ok();
}

Status CheckWindows(const Metadata& keys, uint64_t n_layers) {
  const std::string window = "attention.sliding_window";
  // afmoe's graph takes the window for granted, where llama.cpp's loader does without the key.
  const uint64_t size = keys.UnsignedOr(window, keys.architecture() == "afmoe" ? 0 : 1);
  if (size > kMaxWindow)
    return keys.Wrong(window, Format("is %" PRIu64 ", beyond any context", size));
  if (size == 0 && keys.IsOneOf({"afmoe", "llama4"})) {
    return keys.Wrong(window,
                      "is missing or 0, which llama.cpp's graph of this architecture fails on");
  }
  if (!keys.IsOneOf(SlidingWindows())) return Status::Ok();
  const std::string pattern = window + "_pattern";
  const auto layers = keys.file().UnsignedArray(keys.Full(pattern));
  bool is_any = keys.UnsignedOr(pattern, 0) != 1;  // one in one is a layer without
  if (layers) {
    is_any = false;
    for (uint64_t i = 0; i < std::min<uint64_t>(n_layers, layers->size()); ++i) {
      is_any |= (*layers)[i] != 0;
    }
  }
  if (!is_any) return keys.Wrong(pattern, "leaves no layer with a sliding window");
  // The first of its layers has none, and layers that predict further tokens do not count.
  const uint64_t n_predictors = keys.UnsignedOr("nextn_predict_layers", 0);
  if (keys.architecture() == "cohere2moe" && n_layers < n_predictors + 2) {
    return keys.Wrong(n_predictors > 0 ? "nextn_predict_layers" : "block_count",
                      "leaves no layer with a sliding window");
  }
  return Status::Ok();
}

Status CheckRope(const Metadata& keys) {
  const std::string scaling_key = keys.Full("rope.scaling.type");
  if (const auto scaling = keys.file().String(scaling_key)) {
    const std::string name = scaling->substr(0, scaling->find('\0'));
    if (name != "none" && name != "linear" && name != "yarn" && name != "longrope") {
      return keys.WrongKey(
          scaling_key,
          "is " + Quote(*scaling) + ", where llama.cpp knows none, linear, yarn and longrope");
    }
  }
  for (const char* name : {"rope.freq_base", "rope.freq_base_swa"}) {
    const auto base = keys.file().Number(keys.Full(name));
    if (base && (!std::isfinite(*base) || *base <= 0)) {
      return keys.Wrong(name, Format("is %g, not a number above 0", *base));
    }
  }
  const auto sections = keys.file().IntegerArray(keys.Full("rope.dimension_sections"));
  const auto rope = keys.Unsigned("rope.dimension_count");
  if (sections && rope) {
    uint64_t sum = 0;
    for (const int64_t each : *sections) {
      if (each < 0 || each > static_cast<int64_t>(kMaxHeadSize)) {
        return keys.Wrong("rope.dimension_sections", Format("holds %" PRId64, each));
      }
      sum += static_cast<uint64_t>(each);
    }
    const bool is_needed =
        keys.IsOneOf({"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"});
    if (sum == 0 && is_needed) return keys.Wrong("rope.dimension_sections", "are all 0");
    if (sum > *rope) {
      return keys.Wrong(
          "rope.dimension_sections",
          Format("add up to %" PRIu64 " of %" PRIu64 " rotated dimensions", sum, *rope));
    }
  }
  return Status::Ok();
}

Status CheckNorms(const Metadata& keys) {
  for (const char* name : {"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
                           "attention.group_norm_epsilon"}) {
    const auto epsilon = keys.file().Number(keys.Full(name));
    if (epsilon && (!std::isfinite(*epsilon) || *epsilon < 0)) {
      return keys.Wrong(name, Format("is %g, not a number of at least 0", *epsilon));
    }
  }
  return Status::Ok();
}

}  // namespace

Status CheckAttention(const Metadata& keys) {
  const uint64_t n_layers = keys.UnsignedOr("block_count", 0);
  uint64_t n_head = 0;
  REMOE_RETURN_IF_ERROR(CheckHeadCounts(keys, n_layers, &n_head));
  // llama.cpp takes the first layer's heads for all.
  if (n_head > 0) {
    const uint64_t size = keys.UnsignedOr("embedding_length", 0) / n_head;
    const uint64_t key = keys.UnsignedOr("attention.key_length", size);
    const uint64_t value = keys.UnsignedOr("attention.value_length", size);
    const uint64_t rope = keys.UnsignedOr("rope.dimension_count", key);
    REMOE_RETURN_IF_ERROR(CheckHeadSizes(keys, "", size, size, key));
    if (keys.IsOneOf(SlidingWindows())) {
      REMOE_RETURN_IF_ERROR(CheckHeadSizes(keys, "_swa", key, value, rope));
    }
  }
  REMOE_RETURN_IF_ERROR(CheckLatent(keys, n_layers));
  REMOE_RETURN_IF_ERROR(CheckProjections(keys, n_layers));
  REMOE_RETURN_IF_ERROR(CheckWindows(keys, n_layers));
  REMOE_RETURN_IF_ERROR(CheckRope(keys));
  return CheckNorms(keys);
}

Status CheckRecurrence(const Metadata& keys) {
  if (keys.IsOneOf({"lfm2", "lfm2moe"}) && keys.UnsignedOr("shortconv.l_cache", 0) < 2) {
    return keys.Wrong("shortconv.l_cache", "is missing or below 2");
  }
  if (!keys.IsOneOf({"falcon-h1", "granitehybrid", "jamba", "mamba", "mamba2", "nemotron_h",
                     "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next"})) {
    return Status::Ok();
  }
  const uint64_t inner = keys.UnsignedOr("ssm.inner_size", 0);
  const uint64_t state = keys.UnsignedOr("ssm.state_size", 0);
  const uint64_t rank = keys.UnsignedOr("ssm.time_step_rank", 0);
  const uint64_t groups = keys.UnsignedOr("ssm.group_count", 0);
  if (keys.UnsignedOr("ssm.conv_kernel", 0) < 2) return keys.Wrong("ssm.conv_kernel", "is below 2");
  for (const char* name : {"ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"}) {
    if (keys.UnsignedOr(name, 0) == 0) return keys.Wrong(name, "is missing or 0");
  }
  if (!keys.IsOneOf(
          {"granitehybrid", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next"})) {
    return Status::Ok();
  }
  if (groups == 0) return keys.Wrong("ssm.group_count", "is missing or 0");
  if (inner % rank != 0 || rank % groups != 0 || inner % groups != 0) {
    return keys.Wrong("ssm.inner_size", Format("is %" PRIu64 ", which %" PRIu64 " heads in %" PRIu64
                                               " groups do not divide",
                                               inner, rank, groups));
  }
  // llama.cpp calls these optional, and its graph uses them all the same.
  std::vector<const char*> needed;
  if (keys.IsOneOf({"qwen35", "qwen35moe"})) needed = {".attn_qkv.weight", ".attn_gate.weight"};
  if (keys.IsOneOf({"granitehybrid", "nemotron_h", "nemotron_h_moe"}))
    needed = {".ssm_conv1d.bias"};
  for (const Tensor& tensor : keys.file().tensors()) {
    const size_t at = tensor.name.find(".ssm_conv1d.weight");
    if (at == std::string::npos) continue;
    const std::string block = tensor.name.substr(0, at);
    // The older layout of qwen3next has both in one.
    const bool is_split = keys.architecture() == "qwen3next" &&
                          keys.file().Find(block + ".attn_qkv.weight") != nullptr;
    std::vector<const char*> wanted = needed;
    if (is_split) wanted = {".attn_gate.weight"};
    if (keys.architecture() == "qwen3next" && !is_split) wanted = {".ssm_in.weight"};
    for (const char* part : wanted) {
      if (keys.file().Find(block + part) != nullptr) continue;
      return Status(Code::kCorrupt,
                    keys.file().paths()[0] + ": tensor '" + block + part + "' is missing");
    }
  }
  if (keys.IsOneOf({"qwen35", "qwen35moe", "qwen3next"}) && inner / rank != state) {
    return keys.Wrong("ssm.state_size",
                      Format("is %" PRIu64 ", and the heads are of %" PRIu64, state, inner / rank));
  }
  if (keys.architecture() == "granitehybrid" &&
      inner != 2 * keys.UnsignedOr("embedding_length", 0)) {
    return keys.Wrong("ssm.inner_size",
                      Format("is %" PRIu64 ", which is not twice the embedding", inner));
  }
  return Status::Ok();
}

}  // namespace remoe

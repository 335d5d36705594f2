// The vocabulary: llama.cpp looks tokens up by text and by id, and asserts that both find one
// token.
#include <cinttypes>
#include <unordered_map>

#include "base/format.h"
#include "gguf/header_reader.h"
#include "gguf/loadable.h"

namespace remoe {
namespace {

constexpr const char* kTokens = "tokenizer.ggml.tokens";

// llama.cpp gets a token's text as a C string, and gives an empty one a name.
std::string AsLoaded(const std::string& text, size_t id) {
  const std::string cut = text.substr(0, text.find('\0'));
  return cut.empty() ? Format("[EMPTY_%zu]", id) : cut;
}

Status CheckTexts(const Metadata& keys, const std::string& model,
                  const std::vector<std::string>& tokens) {
  std::unordered_map<std::string, size_t> ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto [first, is_new] = ids.emplace(AsLoaded(tokens[id], id), id);
    if (!is_new) {
      return keys.WrongKey(kTokens, Format("holds %s twice, as tokens %zu and %zu",
                                           Quote(first->first).c_str(), first->second, id));
    }
  }
  // Sentencepiece falls back on bytes for what its tokens do not spell, and llama.cpp ends the process
  // where one is missing.
  for (int byte = 0; model == "llama" && byte < 256; ++byte) {
    const std::string name = Format("<0x%02X>", byte);
    if (ids.count(name) == 0 && ids.count(std::string(1, static_cast<char>(byte))) == 0) {
      return keys.WrongKey(kTokens, "lacks " + name + ", one of the 256 byte tokens");
    }
  }
  return Status::Ok();
}

Status CheckLengths(const Metadata& keys, size_t n_tokens) {
  for (const char* name : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    const KeyPlace* place = keys.file().FindKey(name);
    if (place == nullptr) continue;
    if (!place->is_array) return keys.WrongKey(name, "is not an array");
    if (place->n_elements < n_tokens) {
      return keys.WrongKey(
          name, Format("has %" PRIu64 " elements for %zu tokens", place->n_elements, n_tokens));
    }
  }
  return Status::Ok();
}

// The token that llama.cpp would put before or after a text, when told to; -1 for none.
int64_t SpecialToken(const Metadata& keys, const char* key, int64_t by_default, size_t n_tokens) {
  const auto id = keys.file().Unsigned(key);
  if (id && *id < n_tokens) return static_cast<int64_t>(*id);
  return by_default < static_cast<int64_t>(n_tokens) ? by_default : -1;
}

Status CheckSpecial(const Metadata& keys, const std::string& model, size_t n_tokens) {
  const bool is_bpe = model == "gpt2" || model == "hybriddna" || model == "whitespace";
  const std::string pre = keys.file().String("tokenizer.ggml.pre").value_or("");
  bool begins = model == "llama";
  if (is_bpe) {
    for (const char* name : {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral",
                             "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "chameleon"}) {
      begins |= pre == name;
    }
  }
  bool ends = model == "t5";
  if (const auto value = keys.file().Unsigned("tokenizer.ggml.add_bos_token")) begins = *value != 0;
  if (const auto value = keys.file().Unsigned("tokenizer.ggml.add_eos_token")) ends = *value != 0;
  begins |= model == "gemma4" || model == "bert";
  const int64_t bos = model == "llama" ? 1 : is_bpe ? 11 : model == "bert" ? 101 : -1;
  const int64_t eos = model == "llama" ? 2 : is_bpe ? 11 : model == "t5" ? 1 : -1;
  if (begins && SpecialToken(keys, "tokenizer.ggml.bos_token_id", bos, n_tokens) < 0) {
    return keys.WrongKey("tokenizer.ggml.bos_token_id",
                         "names no token, and every prompt is to begin with it");
  }
  if (ends && SpecialToken(keys, "tokenizer.ggml.eos_token_id", eos, n_tokens) < 0) {
    return keys.WrongKey("tokenizer.ggml.eos_token_id",
                         "names no token, and every prompt is to end with it");
  }
  return Status::Ok();
}

// llama.cpp reads the number out of "<0x0A>" by place, and throws where the text is shorter.
Status CheckByteTokens(const Metadata& keys, const std::vector<std::string>& tokens) {
  constexpr int64_t kByte = 6;  // LLAMA_TOKEN_TYPE_BYTE
  const auto types = keys.file().IntegerArray("tokenizer.ggml.token_type");
  if (!types) return Status::Ok();
  for (size_t id = 0; id < tokens.size() && id < types->size(); ++id) {
    if ((*types)[id] == kByte && AsLoaded(tokens[id], id).size() < 3) {
      return keys.WrongKey(kTokens,
                           Format("calls token %zu, %s, a byte, and those are spelled <0x..>", id,
                                  Quote(tokens[id]).c_str()));
    }
  }
  return Status::Ok();
}

}  // namespace

Status CheckVocabulary(const Metadata& keys) {
  const std::string model = keys.file().String("tokenizer.ggml.model").value_or("");
  const std::string name = model.substr(0, model.find('\0'));
  if (name.empty()) return keys.WrongKey("tokenizer.ggml.model", "is missing or no text");
  if (name == "no_vocab" || name == "none") {
    return keys.WrongKey("tokenizer.ggml.model",
                         "is " + Quote(model) + ": without a vocabulary no text can be read");
  }
  const auto tokens = keys.file().StringArray(kTokens);
  if (!tokens || tokens->empty()) return keys.WrongKey(kTokens, "is missing or no array of texts");
  REMOE_RETURN_IF_ERROR(CheckTexts(keys, name, *tokens));
  REMOE_RETURN_IF_ERROR(CheckLengths(keys, tokens->size()));
  REMOE_RETURN_IF_ERROR(CheckByteTokens(keys, *tokens));
  if (const Tensor* embedding = keys.file().Find("token_embd.weight")) {
    if (embedding->n_dims == 2 && embedding->ne[1] != tokens->size()) {
      return keys.WrongKey(
          kTokens, Format("has %zu tokens, and tensor 'token_embd.weight' %" PRIu64, tokens->size(),
                          embedding->ne[1]));
    }
  }
  return CheckSpecial(keys, name, tokens->size());
}

}  // namespace remoe

#include "gguf/loadable.h"

#include <functional>
#include <iostream>

#include "base/format.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr uint32_t kString = 8, kArray = 9, kF32 = 0, kI8 = 24;

std::string Tokens(const std::vector<std::string>& texts) {
  std::string bytes = GgufWriter::Raw(kString) + GgufWriter::Raw<uint64_t>(texts.size());
  for (const std::string& text : texts) bytes += GgufWriter::Str(text);
  return bytes;
}

// The keys of one layer of three experts; what is not set is left out.
struct Model {
  std::string architecture = "qwen3moe", type = "model";
  std::optional<uint32_t> n_layers = 1, n_experts = 3, n_used = 2, n_heads = 2, n_groups;
  std::vector<std::string> tokens = {"a", "", "ccc", "d"};
  uint32_t norm_type = kF32;

  Status Check() const {
    GgufWriter writer;
    writer.String("general.architecture", architecture);
    writer.String("general.type", type);
    writer.U32(architecture + ".context_length", 128);
    writer.U32(architecture + ".embedding_length", 32);
    const auto set = [&](const char* name, std::optional<uint32_t> value) {
      if (value) writer.U32(architecture + "." + name, *value);
    };
    set("block_count", n_layers);
    set("expert_count", n_experts);
    set("expert_used_count", n_used);
    set("attention.head_count", n_heads);
    set("expert_group_count", n_groups);
    writer.String("tokenizer.ggml.model", "gpt2");
    writer.Key("tokenizer.ggml.tokens", kArray, Tokens(tokens));
    writer.Add("token_embd.weight", kF32, {32, 4}, 512);
    writer.Add("blk.0.attn_norm.weight", norm_type, {32}, norm_type == kF32 ? 128 : 32);
    for (const char* part : {"up", "gate", "down"}) {
      writer.Add(Format("blk.0.ffn_%s_exps.weight", part), kF32, {32, 32, 3}, 12288);
    }
    TemporaryFolder folder;
    const Result<ModelFile> file = ModelFile::Open(folder.Write("m.gguf", writer.Bytes()));
    return file.ok() ? CheckLoadable(file.value()) : file.status();
  }
};

void CheckRefused(const Model& model, const std::string& words, int line) {
  const Status status = model.Check();
  if (status.code() != Code::kCorrupt && status.code() != Code::kNotSupported) {
    testing::Failures()++;
    std::cerr << "line " << line << ": accepted\n";
  } else if (status.message().find(words) == std::string::npos) {
    testing::Failures()++;
    std::cerr << "line " << line << ": no '" << words << "' in: " << status.message() << "\n";
  }
}
#define CHECK_REFUSED(model, words) CheckRefused(model, words, __LINE__)

Model With(const std::function<void(Model*)>& change) {
  Model model;
  change(&model);
  return model;
}

TEST(AdaptersAreNoModels) {
  const Status status = With([](Model* m) { m->type = "adapter"; }).Check();
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("is an adapter") != std::string::npos);
}

TEST(WhatLlamaCppRunsPasses) {
  CHECK_OK(Model().Check());
}

TEST(CountsThatContradictTheTensors) {
  CHECK_REFUSED(With([](Model* m) { m->n_experts = 4; }), "expert_count");
  CHECK_REFUSED(With([](Model* m) { m->n_experts.reset(); }), "expert_count");
  CHECK_REFUSED(With([](Model* m) { m->n_experts = 1025; }), "1024");
  CHECK_REFUSED(With([](Model* m) { m->n_used = 4; }), "4 of 3 experts");
  CHECK_REFUSED(With([](Model* m) { m->n_used.reset(); }), "expert_used_count");
  CHECK_REFUSED(With([](Model* m) { m->n_groups = 2; }), "does not divide");
  CHECK_REFUSED(With([](Model* m) { m->n_groups = 3; }), "expert_group_count");
}

TEST(Layers) {
  CHECK_REFUSED(With([](Model* m) { m->n_layers.reset(); }), "block_count");
  CHECK_REFUSED(With([](Model* m) { m->n_layers = 0; }), "block_count");
  CHECK_REFUSED(With([](Model* m) { m->n_layers = 513; }), "512");
  CHECK_REFUSED(With([](Model* m) { m->n_heads.reset(); }), "head_count");
  CHECK_REFUSED(With([](Model* m) { m->n_heads = 1u << 31; }), "head_count");
}

TEST(Vocabulary) {
  CHECK_REFUSED(With([](Model* m) { m->tokens[3] = "a"; }), "'a' twice, as tokens 0 and 3");
  // As llama.cpp reads them: up to a zero byte, and an empty one by its number.
  CHECK_REFUSED(With([](Model* m) { m->tokens[3] = std::string("a\0b", 3); }), "twice");
  CHECK_REFUSED(With([](Model* m) { m->tokens[3] = "[EMPTY_1]"; }), "twice");
  CHECK_REFUSED(With([](Model* m) { m->tokens.pop_back(); }), "token_embd.weight");
  CHECK_REFUSED(With([](Model* m) { m->tokens.clear(); }), "tokenizer.ggml.tokens");
}

TEST(FormatsThatTheGraphCannotComputeWith) {
  CHECK_REFUSED(With([](Model* m) { m->norm_type = kI8; }), "'blk.0.attn_norm.weight' is I8");
}

TEST(AnArchitectureThatLlamaCppWouldCutShort) {
  CHECK_REFUSED(With([](Model* m) { m->architecture = ""; }), "general.architecture");
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

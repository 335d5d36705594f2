#include "gguf/model_file.h"

#include <sys/stat.h>

#include <random>

#include "base/format.h"
#include "gguf/header_reader.h"
#include "gguf/types.h"
#include "gguf/virtual_file.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_K = 12;

// GGUF value types.
constexpr uint32_t kU8 = 0, kI32 = 5, kBool = 7, kString = 8, kArray = 9, kI64 = 11;

std::string Array(uint32_t type, uint64_t n, const std::string& elements) {
  return GgufWriter::Raw(type) + GgufWriter::Raw(n) + elements;
}

Result<ModelFile> OpenBytes(const std::string& bytes) {
  TemporaryFolder folder;
  return ModelFile::Open(folder.Write("m.gguf", bytes));
}

Result<ModelFile> OpenWriter(const GgufWriter& writer) {
  return OpenBytes(writer.Bytes());
}

// The file is refused as corrupt, and the message holds `words`.
void CheckCorrupt(const Result<ModelFile>& model, const std::string& words, int line) {
  if (model.status().code() != Code::kCorrupt ||
      model.status().message().find(words) == std::string::npos) {
    testing::Failures()++;
    std::cerr << "line " << line << ": expected '" << words
              << "', got: " << model.status().message() << "\n";
  }
}
#define CHECK_CORRUPT(model, words) CheckCorrupt(model, words, __LINE__)

GgufWriter SmallMoe() {
  GgufWriter writer;
  writer.String("general.architecture", "qwen3moe");
  writer.U32("qwen3moe.expert_used_count", 2);
  writer.Key(
      "tokenizer.ggml.tokens", kArray,
      Array(kString, 3, GgufWriter::Str("a") + GgufWriter::Str("") + GgufWriter::Str("ccc")));
  writer.Key("qwen3moe.layers", kArray,
             Array(kI32, 2, GgufWriter::Raw<int32_t>(4) + GgufWriter::Raw<int32_t>(5)));
  writer.Add("token_embd.weight", kF32, {8, 4}, 128);
  writer.Add("blk.0.ffn_gate_inp.weight", kF32, {8, 3}, 96);
  writer.Add("blk.0.ffn_gate_exps.weight", kF32, {8, 4, 3}, 384);
  writer.Add("blk.0.ffn_down_exps.weight", kF32, {4, 8, 3}, 384);
  writer.Add("blk.0.ffn_up_exps.weight", kF32, {8, 4, 3}, 384);
  writer.Add("blk.0.ffn_up_exps.bias", kF32, {4, 3}, 48);
  return writer;
}

TEST(TypesThatWereRemovedOrNeverWereAreUnknown) {
  CHECK(FindType(4) == nullptr);
  CHECK(FindType(31) == nullptr);
  CHECK(FindType(43) == nullptr);
  CHECK(FindType(0xffffffff) == nullptr);
  CHECK_EQ(FindType(kQ4_K)->block_bytes, 144u);
}

TEST(ASmallModelReadsAsWritten) {
  const Result<ModelFile> model = OpenWriter(SmallMoe());
  CHECK_OK(model.status());
  const ModelFile& m = model.value();
  CHECK_EQ(m.architecture(), std::string("qwen3moe"));
  CHECK_EQ(m.n_experts_used(), 2);
  CHECK_EQ(m.tensors().size(), 6u);
  CHECK_EQ(m.n_keys(), 4u);
  CHECK_EQ(m.KeyNames().size(), 4u);
  CHECK_EQ(m.Find("blk.0.ffn_down_exps.weight")->ne[2], 3u);
  CHECK(m.Find("nothing") == nullptr);
  CHECK(m.UnsignedArray("qwen3moe.layers") == (std::vector<uint64_t>{4, 5}));
  CHECK(!m.UnsignedArray("tokenizer.ggml.tokens"));
  CHECK(!m.Unsigned("tokenizer.ggml.tokens"));
  CHECK(!m.Unsigned("general.architecture"));
  CHECK(!m.String("qwen3moe.layers"));
  CHECK_EQ(m.expert_bytes(), 3u * 384u);
  CHECK_EQ(m.dense_bytes(), 128u + 96u + 48u);
}

TEST(ExpertsAreFoundInGraphOrder) {
  const Result<ModelFile> model = OpenWriter(SmallMoe());
  CHECK_OK(model.status());
  const auto layers = model.value().ExpertLayers();
  CHECK_OK(layers.status());
  CHECK_EQ(layers.value().size(), 1u);
  const ExpertLayer& layer = layers.value()[0];
  CHECK_EQ(layer.n_experts, 3);
  CHECK_EQ(layer.expert_bytes(), 384u);
  CHECK_EQ(layer.matrices.size(), 3u);
  CHECK(layer.matrices[0].matrix == Matrix::kUp);
  CHECK(layer.matrices[1].matrix == Matrix::kGate);
  CHECK(layer.matrices[2].matrix == Matrix::kDown);
  CHECK_EQ(layer.matrices[2].expert_bytes, 128u);
  CHECK_EQ(layer.matrices[2].offset, model.value().Find("blk.0.ffn_down_exps.weight")->offset);
}

TEST(KeysDecodeByTheirType) {
  GgufWriter writer;
  writer.Key("minus", kI64, GgufWriter::Raw<int64_t>(-1));
  writer.Key("yes", kBool, GgufWriter::Raw<uint8_t>(7));
  writer.Key("byte", kU8, GgufWriter::Raw<uint8_t>(200));
  const Result<ModelFile> model = OpenWriter(writer);
  CHECK_OK(model.status());
  CHECK(!model.value().Unsigned("minus"));
  CHECK(model.value().Unsigned("yes") == 1u);
  CHECK(model.value().Unsigned("byte") == 200u);
}

TEST(LayersWhoseMatricesDoNotFitTogetherAreRefusedByName) {
  const auto refused = [](const std::vector<std::pair<std::string, uint64_t>>& names) {
    GgufWriter writer;
    for (const auto& [name, n] : names) writer.Add(name, kF32, {4, 4, n}, 64 * n);
    const Result<ModelFile> model = OpenWriter(writer);
    CHECK_OK(model.status());
    const Status status = model.value().ExpertLayers().status();
    return status.code() == Code::kNotSupported &&
           status.message().find("blk.7.ffn_") != std::string::npos;
  };
  const std::string up = "blk.7.ffn_up_exps.weight", gate = "blk.7.ffn_gate_exps.weight";
  const std::string down = "blk.7.ffn_down_exps.weight", gate_up = "blk.7.ffn_gate_up_exps.weight";
  CHECK(!refused({{up, 4}, {gate, 4}, {down, 4}}));
  CHECK(!refused({{down, 4}, {gate_up, 4}}));
  CHECK(!refused({{up, 4}, {down, 4}}));
  CHECK(refused({{up, 4}, {gate, 4}}));
  CHECK(refused({{gate, 4}, {down, 4}}));
  CHECK(refused({{up, 4}, {gate, 4}, {down, 5}}));
  CHECK(refused({{up, 4}, {gate, 4}, {down, 4}, {gate_up, 4}}));
  GgufWriter old;
  old.Add("blk.7.ffn_up.0.weight", kF32, {4, 4}, 64);
  CHECK(OpenWriter(old).value().ExpertLayers().status().code() == Code::kNotSupported);
  GgufWriter flat;
  flat.Add(up, kF32, {4, 4}, 64);
  CHECK(OpenWriter(flat).value().ExpertLayers().status().code() == Code::kNotSupported);
}

TEST(SharedExpertsBiasesAndNormsAreDense) {
  GgufWriter writer;
  for (const char* name :
       {"blk.0.ffn_up_shexp.weight", "blk.0.ffn_up_chexps.weight", "blk.0.ffn_norm_exps.weight",
        "blk.0.ffn_up_exps.bias", "blk.0.ffn_up_exps.scale", "xblk.0.ffn_up_exps.weight",
        "blk..ffn_up_exps.weight", "blk.01.ffn_up_exps.weight", "blk.0.ffn_up.weight"}) {
    writer.Add(name, kF32, {4, 4, 2}, 128);
  }
  const Result<ModelFile> model = OpenWriter(writer);
  CHECK_OK(model.status());
  CHECK(model.value().ExpertLayers().value().empty());
  CHECK_EQ(model.value().expert_bytes(), 0u);
}

TEST(EveryTruncationIsRefused) {
  const std::string bytes = SmallMoe().Bytes();
  const Result<ModelFile> whole = OpenBytes(bytes);
  CHECK_OK(whole.status());
  const Tensor& last = whole.value().tensors().back();
  for (size_t size = 0; size < last.offset + last.n_bytes; ++size) {
    const Result<ModelFile> model = OpenBytes(bytes.substr(0, size));
    CHECK(model.status().code() == Code::kCorrupt);
  }
}

TEST(WhatIsNoGgufIsRefused) {
  CHECK_CORRUPT(OpenBytes(""), "fewer than 4 bytes");
  CHECK_CORRUPT(OpenBytes("PK\x03\x04 and so on, long enough for a header"), "'PK\\x03\\x04'");
  TemporaryFolder folder;
  CHECK(ModelFile::Open(folder.path()).status().code() == Code::kInvalidArgument);
  CHECK(ModelFile::Open(folder.path() + "/none.gguf").status().code() == Code::kIo);
  const std::string fifo = folder.path() + "/fifo";
  CHECK_EQ(mkfifo(fifo.c_str(), 0600), 0);
  folder.Adopt(fifo);
  CHECK(ModelFile::Open(fifo).status().code() == Code::kInvalidArgument);  // and returns at all
  CHECK(ModelFile::Open("/dev/zero").status().code() == Code::kInvalidArgument);
}

TEST(VersionsAndByteOrder) {
  GgufWriter writer = SmallMoe();
  writer.version = 2;
  CHECK_OK(OpenWriter(writer).status());
  for (uint32_t version : {0u, 1u, 4u, 0x03000000u}) {
    writer.version = version;
    CHECK(OpenWriter(writer).status().code() == Code::kNotSupported);
  }
  CHECK(OpenWriter(writer).status().message().find("big-endian") != std::string::npos);
}

TEST(CountsBeyondTheFileAreRefused) {
  for (uint64_t count : {uint64_t{7}, uint64_t{100000}, uint64_t{1} << 40, UINT64_MAX}) {
    GgufWriter writer = SmallMoe();
    writer.n_tensors = count;
    CHECK(OpenWriter(writer).status().code() == Code::kCorrupt);
    writer = SmallMoe();
    writer.n_keys = count;
    CHECK(OpenWriter(writer).status().code() == Code::kCorrupt);
  }
}

TEST(LyingLengthsAreRefused) {
  for (uint64_t length : {uint64_t{1} << 20, uint64_t{1} << 62, UINT64_MAX, UINT64_MAX - 8}) {
    GgufWriter writer;
    writer.Key("a", kString, GgufWriter::Raw(length));
    CHECK_CORRUPT(OpenWriter(writer), "'a'");
    writer = GgufWriter();
    writer.Key("a", kArray, Array(kString, length, ""));
    CHECK_CORRUPT(OpenWriter(writer), "'a'");
    writer = GgufWriter();
    writer.Key("a", kArray, Array(kI64, length, ""));
    CHECK_CORRUPT(OpenWriter(writer), "'a'");
    writer = GgufWriter();
    writer.Key("a", kArray, Array(kString, 1, GgufWriter::Raw(length)));
    CHECK_CORRUPT(OpenWriter(writer), "'a'");
  }
  GgufWriter nested;
  nested.Key("a", kArray, Array(kArray, 1, Array(kU8, 0, "")));
  CHECK_CORRUPT(OpenWriter(nested), "array of arrays");
  GgufWriter unknown;
  unknown.Key("a", 13, "");
  CHECK_CORRUPT(OpenWriter(unknown), "unknown type 13");
}

// A hole makes a file as long as its lengths claim; nothing of that size is read or allocated.
TEST(HugeSparseFilesDoNotMakeAHugeHeader) {
  TemporaryFolder folder;
  GgufWriter writer;
  writer.Key("a", kString, GgufWriter::Raw(uint64_t{1} << 39));
  const std::string path = folder.Write("m.gguf", writer.Bytes());
  CHECK_EQ(truncate(path.c_str(), off_t{1} << 40), 0);
  CHECK_CORRUPT(ModelFile::Open(path), "64 MiB");
}

TEST(BadNamesAreRefused) {
  for (const std::string& name :
       {std::string(), std::string("a\0b", 3), std::string("\xff"), std::string(64, 'n')}) {
    GgufWriter writer;
    writer.Add(name, kF32, {4}, 16);
    CHECK_CORRUPT(OpenWriter(writer), "a tensor's name");
  }
  GgufWriter key;
  key.U32(std::string("a\0b", 3), 1);
  CHECK_CORRUPT(OpenWriter(key), "'a\\x00b'");
  GgufWriter twice;
  twice.U32("a", 1);
  twice.U32("a", 2);
  CHECK_CORRUPT(OpenWriter(twice), "occurs twice");
  GgufWriter tensors;
  tensors.Add("a", kF32, {4}, 16);
  tensors.Add("a", kF32, {4}, 16);
  CHECK_CORRUPT(OpenWriter(tensors), "occurs twice");
}

TEST(BadShapesAndPlacesAreRefused) {
  const auto one = [](uint32_t type, const std::vector<uint64_t>& shape, uint64_t offset) {
    GgufWriter writer;
    writer.Add("first", kF32, {16}, 64);
    writer.AddAt("t", type, shape, 0, offset);
    return OpenWriter(writer);
  };
  CHECK_CORRUPT(one(kF32, {4, 0}, 64), "dimension 1 is zero");
  CHECK_CORRUPT(one(kF32, {1, 1, 1, 1, 1}, 64), "5 dimensions");
  CHECK_CORRUPT(one(kF32, {uint64_t{1} << 32, uint64_t{1} << 32}, 64), "overflow");
  CHECK_CORRUPT(one(kF32, {UINT64_MAX}, 64), "overflow");
  CHECK_CORRUPT(one(kF32, {uint64_t{1} << 61}, 64), "overflow");
  CHECK_CORRUPT(one(kF32, {uint64_t{1} << 40}, 64), "beyond the file's");
  CHECK_CORRUPT(one(kF32, {4}, 32), "overlap");
  CHECK_CORRUPT(one(kF32, {4}, 0), "overlap");
  CHECK_CORRUPT(one(kF32, {4}, 33), "no multiple of the alignment");
  CHECK_CORRUPT(one(kF32, {4}, UINT64_MAX - 31), "beyond the file's");
  CHECK_CORRUPT(one(kQ4_K, {255}, 64), "no multiple of the 256");
  CHECK_CORRUPT(one(4, {32}, 64), "unknown type 4");
  CHECK_CORRUPT(one(99, {32}, 64), "unknown type 99");
}

TEST(AlignmentIsHonouredAndChecked) {
  GgufWriter writer;
  writer.alignment = 4096;
  writer.U32("general.alignment", 4096);
  writer.Add("a", kF32, {3}, 12);
  writer.Add("b", kF32, {3}, 12);
  const Result<ModelFile> model = OpenWriter(writer);
  CHECK_OK(model.status());
  CHECK_EQ(model.value().tensors()[1].offset, 2u * 4096u);
  for (uint32_t alignment : {0u, 3u, 48u, 1u << 31}) {
    GgufWriter bad;
    bad.U32("general.alignment", alignment);
    CHECK_CORRUPT(OpenWriter(bad), "general.alignment");
  }
  GgufWriter kind;
  kind.U16("general.alignment", 32);
  CHECK_CORRUPT(OpenWriter(kind), "general.alignment");
}

struct Shards {
  TemporaryFolder folder;
  std::string Write(uint16_t number, uint16_t count, const std::string& tensor, uint32_t total,
                    const std::string& architecture = "") {
    GgufWriter writer;
    if (number == 0) writer.String("general.architecture", "a");
    if (!architecture.empty()) writer.String("general.architecture", architecture);
    writer.U16("split.no", number);
    writer.U16("split.count", count);
    writer.U32("split.tensors.count", total);
    writer.Add(tensor, kF32, {4}, 16);
    return writer.Bytes();
  }
  std::string Save(int position, int count, const std::string& bytes) {
    return folder.Write(Format("m-%05d-of-%05d.gguf", position, count), bytes);
  }
};

TEST(ShardsAreFoundByNameAndMustBelongTogether) {
  {
    Shards s;
    const std::string first = s.Save(1, 3, s.Write(0, 3, "a", 3));
    CHECK(ModelFile::Open(first).status().message().find("m-00002-of-00003.gguf") !=
          std::string::npos);
    s.Save(2, 3, s.Write(1, 3, "b", 3));
    const std::string third = s.Save(3, 3, s.Write(2, 3, "c", 3));
    const Result<ModelFile> model = ModelFile::Open(first);
    CHECK_OK(model.status());
    CHECK_EQ(model.value().paths().size(), 3u);
    CHECK_EQ(model.value().tensors()[2].shard, 2);
    const Status status = ModelFile::Open(third).status();
    CHECK(status.code() == Code::kInvalidArgument);
    CHECK(status.message().find("m-00001-of-00003.gguf") != std::string::npos);
  }
  const auto pair = [](const std::string& first, const std::string& second) {
    Shards s;
    const std::string path = s.Save(1, 2, first);
    s.Save(2, 2, second);
    return ModelFile::Open(path);
  };
  Shards s;
  CHECK_OK(pair(s.Write(0, 2, "a", 2), s.Write(1, 2, "b", 2)).status());
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 2), s.Write(1, 2, "a", 2)), "earlier shard");
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 2), s.Write(0, 2, "b", 2)), "does not say");
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 2), s.Write(1, 3, "b", 2)), "does not say");
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 3), s.Write(1, 2, "b", 3)), "not of one model");
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 2), s.Write(1, 2, "b", 2, "other")), "another model");
  CHECK_CORRUPT(pair(s.Write(0, 2, "a", 2), "GGUF"), "shard 2 of 2");
  CHECK(pair(s.Write(0, 3, "a", 3), s.Write(1, 3, "b", 3)).status().code() ==
        Code::kInvalidArgument);
  CHECK_OK(OpenBytes(s.Write(0, 1, "a", 1)).status());  // one shard is a file like any
  CHECK(OpenBytes(s.Write(0, 2, "a", 2)).status().code() == Code::kInvalidArgument);
  CHECK_CORRUPT(OpenBytes(s.Write(5, 2, "a", 2)), "split.no");
}

// Everything that the rest of the program would do with a file that opened.
void Use(const ModelFile& model) {
  uint64_t bytes = 0;
  for (const Tensor& tensor : model.tensors()) {
    CHECK(tensor.offset + tensor.n_bytes <= model.file_bytes()[static_cast<size_t>(tensor.shard)]);
    bytes += tensor.n_bytes;
  }
  CHECK_EQ(bytes, model.expert_bytes() + model.dense_bytes());
  CHECK(model.n_experts_used() >= 0);
  for (const std::string& key : model.KeyNames()) {
    (void)model.Unsigned(key);
    (void)model.String(key);
    (void)model.UnsignedArray(key);
  }
  const auto layers = model.ExpertLayers();
  Result<VirtualFile> file =
      VirtualFile::Make(&model, {}, [](int, uint64_t, uint64_t n, uint8_t* dest) {
        std::fill_n(dest, n, uint8_t{1});
        return Status::Ok();
      });
  CHECK_EQ(file.ok(), layers.ok());
  if (file.ok()) {
    uint8_t piece[4096];
    for (uint64_t offset = 0; offset < 3000; offset += 1000)
      CHECK(file.value().Pread(offset, piece, 900) == 900);
  }
}

TEST(RandomDamageNeverCrashes) {
  std::mt19937_64 random(20240521);
  TemporaryFolder folder;
  const std::string good = SmallMoe().Bytes();
  const size_t header_bytes = static_cast<size_t>(OpenBytes(good).value().tensors()[0].offset);
  const uint64_t nasty[] = {0,
                            1,
                            2,
                            7,
                            31,
                            64,
                            255,
                            1u << 16,
                            1u << 31,
                            UINT32_MAX,
                            uint64_t{1} << 32,
                            uint64_t{1} << 62,
                            uint64_t{1} << 63,
                            UINT64_MAX,
                            UINT64_MAX - 31};
  int opened = 0, refused = 0;
  for (int round = 0; round < 30000; ++round) {
    std::string bytes = good;
    for (uint64_t i = 0, n = 1 + random() % 3; i < n; ++i) {
      const size_t at = random() % header_bytes;
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 2: {
          const std::string value = GgufWriter::Raw(nasty[random() % std::size(nasty)]);
          bytes.replace(at, random() % 2 ? 4 : 8, value, 0, random() % 2 ? 4 : 8);
          break;
        }
        default:
          bytes.resize(random() % 8 ? bytes.size() : at + 1);
      }
      if (bytes.size() < header_bytes) break;
    }
    const Result<ModelFile> model = ModelFile::Open(folder.Write("m.gguf", bytes));
    if (model.ok()) {
      Use(model.value());
      ++opened;
    } else {
      CHECK(!model.status().message().empty());
      ++refused;
    }
  }
  CHECK(opened > 1000);
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

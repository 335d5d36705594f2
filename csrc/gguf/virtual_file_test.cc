#include "gguf/virtual_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr uint32_t kF32 = 0;

// A dense tensor, a router, an expert matrix larger than any stdio buffer, and a tail.
GgufWriter MoeWriter() {
  GgufWriter writer;
  writer.String("general.architecture", "olmoe");
  writer.U32("olmoe.expert_used_count", 2);
  writer.Add("token_embd.weight", kF32, {32, 5}, 640);
  writer.Add("blk.0.ffn_gate_inp.weight", kF32, {32, 4}, 512);
  writer.Add("blk.0.ffn_up_exps.weight", kF32, {32, 256, 4}, 131072);
  writer.Add("blk.0.ffn_gate_exps.weight", kF32, {32, 256, 4}, 131072);
  writer.Add("blk.0.ffn_down_exps.weight", kF32, {256, 32, 4}, 131072);
  writer.Add("output_norm.weight", kF32, {31}, 124);
  return writer;
}

// Serves shards from memory, and remembers what was asked.
struct Storage {
  std::vector<std::string> shards;
  std::vector<uint64_t> sizes;
  bool fail = false;

  ReadAt Reader() {
    return [this](int shard, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
      if (fail) return Status(Code::kIo, "injected");
      sizes.push_back(n_bytes);
      std::memcpy(dest, shards[static_cast<size_t>(shard)].data() + offset, n_bytes);
      return Status::Ok();
    };
  }
};

struct Opened {
  TemporaryFolder folder;
  Storage storage;
  std::unique_ptr<ModelFile> model;
};

void OpenSingle(const GgufWriter& writer, Opened* opened) {
  opened->storage.shards = {writer.Bytes()};
  Result<ModelFile> model =
      ModelFile::Open(opened->folder.Write("m.gguf", opened->storage.shards[0]));
  CHECK_OK(model.status());
  opened->model = std::make_unique<ModelFile>(std::move(model.value()));
}

std::string ReadAll(VirtualFile* file) {
  std::string bytes(file->size(), '\xee');
  CHECK_EQ(file->Pread(0, reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()),
           static_cast<int64_t>(bytes.size()));
  return bytes;
}

// The virtual bytes parsed as a file of their own: where llama.cpp will look for each tensor.
ModelFile Reparse(Opened* opened, const std::string& bytes) {
  Result<ModelFile> model = ModelFile::Open(opened->folder.Write("virtual.gguf", bytes));
  CHECK_OK(model.status());
  return std::move(model.value());
}

TEST(DenseBytesAreTheFilesAndExpertBytesAreLeftAlone) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  const std::string bytes = ReadAll(&file.value());
  CHECK_EQ(file.value().dense_bytes_read(), 640u + 512u + 124u);
  CHECK_EQ(file.value().expert_bytes_skipped(), 3u * 131072u);
  CHECK_EQ(file.value().dense_bytes_read(), opened.model->dense_bytes());
  CHECK_EQ(file.value().expert_bytes_skipped(), opened.model->expert_bytes());
  const ModelFile parsed = Reparse(&opened, bytes);
  CHECK_EQ(parsed.architecture(), std::string("olmoe"));
  CHECK_EQ(parsed.n_experts_used(), 2);
  CHECK_EQ(parsed.tensors().size(), opened.model->tensors().size());
  for (size_t i = 0; i < parsed.tensors().size(); ++i) {
    const Tensor& seen = parsed.tensors()[i];
    const Tensor& real = opened.model->tensors()[i];
    CHECK_EQ(seen.name, real.name);
    CHECK_EQ(seen.n_bytes, real.n_bytes);
    CHECK_EQ(seen.offset % VirtualFile::kStreamBufferBytes, 0u);
    const std::string expected = seen.name.find("_exps") == std::string::npos
                                     ? opened.storage.shards[0].substr(real.offset, real.n_bytes)
                                     : std::string(real.n_bytes, '\xee');
    CHECK(bytes.compare(seen.offset, seen.n_bytes, expected) == 0);
  }
}

TEST(EveryOffsetAndLengthReadsTheSameBytes) {
  GgufWriter writer;
  writer.Add("a", kF32, {3}, 12);
  writer.Add("b", kF32, {9}, 36);
  Opened opened;
  OpenSingle(writer, &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  const std::string whole = ReadAll(&file.value());
  const uint64_t unit = VirtualFile::kStreamBufferBytes;
  CHECK_EQ(whole.size(), 3 * unit);
  for (uint64_t near : {uint64_t{0}, uint64_t{90}, unit, 2 * unit, 3 * unit}) {
    for (uint64_t offset = near < 50 ? 0 : near - 50; offset < near + 50; ++offset) {
      for (uint64_t n = 0; n <= 100; n += 3) {
        std::string piece(n, '\xee');
        const int64_t got = file.value().Pread(offset, reinterpret_cast<uint8_t*>(piece.data()), n);
        const uint64_t expected = offset >= whole.size() ? 0 : std::min(n, whole.size() - offset);
        CHECK_EQ(got, static_cast<int64_t>(expected));
        CHECK(piece.compare(0, expected, whole, std::min<size_t>(offset, whole.size()), expected) ==
              0);
      }
    }
  }
}

// What llama.cpp does to read a tensor. RETURNS: whether it is content.
bool LoadAsLlamaDoes(std::FILE* stream, uint64_t file_bytes, uint64_t offset, uint64_t n_bytes,
                     char* dest) {
  if (fseeko(stream, static_cast<off_t>(offset), SEEK_SET) != 0) return false;
  const off_t at = ftello(stream);
  if (at < 0) return false;
  const size_t to_read = std::min(n_bytes, file_bytes - static_cast<uint64_t>(at));
  const size_t got = std::fread(dest, to_read, 1, stream);
  return !std::ferror(stream) && (to_read == 0 || got == 1);
}

TEST(LoadingAnExpertMakesNoPageResident) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  const ModelFile parsed = Reparse(&opened, ReadAll(&file.value()));
  Result<VirtualFile> fresh = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(fresh.status());
  Result<std::FILE*> stream = fresh.value().OpenStream();
  CHECK_OK(stream.status());
  opened.storage.sizes.clear();
  CHECK_EQ(fseeko(stream.value(), 0, SEEK_END), 0);
  CHECK_EQ(static_cast<uint64_t>(ftello(stream.value())), fresh.value().size());
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  // Backwards, since nothing may depend on the order.
  for (size_t i = parsed.tensors().size(); i-- > 0;) {
    const Tensor& tensor = parsed.tensors()[i];
    const size_t mapped = (tensor.n_bytes + page - 1) / page * page;
    void* buffer =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(buffer != MAP_FAILED);
    CHECK(LoadAsLlamaDoes(stream.value(), fresh.value().size(), tensor.offset, tensor.n_bytes,
                          static_cast<char*>(buffer)));
    std::vector<unsigned char> resident(mapped / page);
    CHECK_EQ(mincore(buffer, mapped, resident.data()), 0);
    size_t n_resident = 0;
    for (unsigned char flag : resident) n_resident += flag & 1;
    const bool expert = tensor.name.find("_exps") != std::string::npos;
    CHECK_EQ(n_resident, expert ? 0u : resident.size());
    const Tensor& real = opened.model->tensors()[i];
    if (!expert)
      CHECK(std::memcmp(buffer, opened.storage.shards[0].data() + real.offset, real.n_bytes) == 0);
    munmap(buffer, mapped);
  }
  // Each dense byte once, and not one of a neighbour's.
  CHECK_EQ(opened.storage.sizes.size(), 3u);
  CHECK_EQ(fresh.value().dense_bytes_read(), opened.model->dense_bytes());
  CHECK_EQ(fresh.value().expert_bytes_skipped(), opened.model->expert_bytes());
  std::fclose(stream.value());
}

TEST(ReadingAnExpertFromTheStreamFails) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  Result<std::FILE*> stream = file.value().OpenStream();
  CHECK_OK(stream.status());
  char bytes[8];
  // Tensor 2 begins three buffers after the header's.
  for (uint64_t inside : {uint64_t{0}, uint64_t{1}, uint64_t{131071}}) {
    fseeko(stream.value(), static_cast<off_t>(3 * VirtualFile::kStreamBufferBytes + inside),
           SEEK_SET);
    CHECK_EQ(std::fread(bytes, 1, 1, stream.value()), 0u);
  }
  CHECK(fseeko(stream.value(), -1, SEEK_SET) != 0);
  std::fclose(stream.value());
}

TEST(StreamReadsLargeDenseTensorsInPiecesOfItsBuffer) {
  GgufWriter writer;
  constexpr uint64_t kBytes = 10 << 20;
  writer.Add("output.weight", kF32, {kBytes / 4}, kBytes);
  writer.Add("output_norm.weight", kF32, {4}, 16);
  Opened opened;
  OpenSingle(writer, &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  Result<std::FILE*> stream = file.value().OpenStream();
  CHECK_OK(stream.status());
  std::string bytes(kBytes, '\0');
  CHECK(LoadAsLlamaDoes(stream.value(), file.value().size(), VirtualFile::kStreamBufferBytes,
                        kBytes, bytes.data()));
  CHECK(opened.storage.shards[0].compare(opened.model->tensors()[0].offset, kBytes, bytes) == 0);
  CHECK(opened.storage.sizes == (std::vector<uint64_t>{4 << 20, 4 << 20, 2 << 20}));
  std::fclose(stream.value());
}

TEST(OverlayReplacesATensor) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  const std::string name = "blk.0.ffn_gate_inp.weight";
  Result<VirtualFile> file = VirtualFile::Make(
      opened.model.get(), {{name, std::vector<uint8_t>(512, 0x42)}}, opened.storage.Reader());
  CHECK_OK(file.status());
  VirtualFile moved = std::move(file.value());  // as a caller does who keeps it
  const std::string bytes = ReadAll(&moved);
  CHECK(bytes.substr(Reparse(&opened, bytes).Find(name)->offset, 512) == std::string(512, '\x42'));
  CHECK_EQ(moved.dense_bytes_read(), 640u + 124u);
}

TEST(OverlayMustFit) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  const auto code = [&](const std::string& name, size_t n_bytes) {
    return VirtualFile::Make(opened.model.get(), {{name, std::vector<uint8_t>(n_bytes)}},
                             opened.storage.Reader())
        .status()
        .code();
  };
  CHECK(code("blk.0.ffn_gate_inp.weight", 512) == Code::kOk);
  CHECK(code("blk.0.ffn_gate_inp.weight", 511) == Code::kInvalidArgument);
  CHECK(code("blk.1.ffn_gate_inp.weight", 512) == Code::kInvalidArgument);
  CHECK(code("blk.0.ffn_up_exps.weight", 131072) == Code::kInvalidArgument);
}

TEST(FailureIsKeptAndTheStreamReportsIt) {
  Opened opened;
  OpenSingle(MoeWriter(), &opened);
  Result<VirtualFile> file = VirtualFile::Make(opened.model.get(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  Result<std::FILE*> stream = file.value().OpenStream();
  CHECK_OK(stream.status());
  opened.storage.fail = true;
  char bytes[64];
  fseeko(stream.value(), VirtualFile::kStreamBufferBytes, SEEK_SET);  // the first tensor
  CHECK_EQ(std::fread(bytes, sizeof(bytes), 1, stream.value()), 0u);
  CHECK(std::ferror(stream.value()) != 0);
  CHECK(file.value().status().code() == Code::kIo);
  CHECK_EQ(file.value().status().message(), std::string("injected"));
  std::fclose(stream.value());
}

TEST(ShardsBecomeOneFile) {
  Opened opened;
  GgufWriter first = MoeWriter();
  first.U16("split.no", 0);
  first.U16("split.count", 2);
  first.U32("split.tensors.count", 8);
  GgufWriter second;
  second.seed = 99;
  second.U16("split.no", 1);
  second.U16("split.count", 2);
  second.U32("split.tensors.count", 8);
  second.Add("blk.1.attn_norm.weight", kF32, {5}, 20);
  second.Add("output.weight", kF32, {32, 5}, 640);
  opened.storage.shards = {first.Bytes(), second.Bytes()};
  const std::string path = opened.folder.Write("m-00001-of-00002.gguf", opened.storage.shards[0]);
  opened.folder.Write("m-00002-of-00002.gguf", opened.storage.shards[1]);
  Result<ModelFile> model = ModelFile::Open(path);
  CHECK_OK(model.status());
  CHECK_EQ(model.value().tensors().size(), 8u);
  Result<VirtualFile> file = VirtualFile::Make(&model.value(), {}, opened.storage.Reader());
  CHECK_OK(file.status());
  // The virtual bytes, written out, are a GGUF by the same checks, with the same tensors.
  const std::string bytes = ReadAll(&file.value());
  Result<ModelFile> one = ModelFile::Open(opened.folder.Write("one.gguf", bytes));
  CHECK_OK(one.status());
  CHECK_EQ(one.value().n_keys(), 3u);  // two of its own, and the alignment
  CHECK_EQ(one.value().architecture(), std::string("olmoe"));
  CHECK(!one.value().Unsigned("split.count"));
  CHECK_EQ(one.value().tensors().size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    const Tensor& a = model.value().tensors()[i];
    const Tensor& b = one.value().tensors()[i];
    CHECK_EQ(a.name, b.name);
    CHECK_EQ(a.type, b.type);
    CHECK_EQ(a.n_bytes, b.n_bytes);
    CHECK_EQ(a.n_dims, b.n_dims);
    if (a.name.find("_exps") != std::string::npos) continue;
    CHECK(bytes.compare(b.offset, b.n_bytes, opened.storage.shards[static_cast<size_t>(a.shard)],
                        a.offset, a.n_bytes) == 0);
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

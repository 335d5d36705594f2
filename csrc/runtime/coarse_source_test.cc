// Experts in a coarser form: read where they were wished for, into slots of the usual size.
#include "runtime/coarse_source.h"

#include <cstring>

#include "runtime/expert_store.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr int kLayers = 2, kExperts = 8;
constexpr uint32_t kF32 = 0, kF16 = 1;

// A store over a model of floats and a second file with half of the bytes; both read in place, or, with
// rows that make no whole pages, both staged.
struct Fixture {
  explicit Fixture(bool staged, int n_slots = 6) {
    const uint64_t rows = staged ? 33 : 64;
    own_bytes = Write("m.gguf", kF32, 4, rows, &own);
    coarse_bytes = Write("c.gguf", kF16, 2, rows, &coarse);
    layers = own->ExpertLayers().value();
    coarse_layers = coarse->ExpertLayers().value();
    ReaderOptions reader_options;
    reader_options.backend = "pread";
    Result<std::unique_ptr<Reader>> opened =
        OpenReader({own->paths()[0], coarse->paths()[0]}, reader_options);
    CHECK_OK(opened.status());
    reader = std::move(opened.value());
    const std::vector<std::vector<bool>> as_they_are(kLayers, std::vector<bool>(3));
    coarse_layout = std::make_unique<SlotLayout>(coarse_layers, as_they_are);
    layout = std::make_unique<SlotLayout>(SlotLayout(layers, as_they_are).Beside(*coarse_layout));
    CHECK_EQ(coarse_layout->staged_bytes() > 0, staged);
    StoreOptions options;
    options.n_slots = options.event_slots = n_slots;
    options.policy = "lru";
    options.coarse.file = coarse.get();
    options.coarse.layers = &coarse_layers;
    options.coarse.layout = coarse_layout.get();
    options.coarse.reader = reader.get();
    options.coarse.first_shard = 1;
    Result<std::unique_ptr<ExpertStore>> made =
        ExpertStore::Make(own.get(), &layers, *layout, reader.get(), Transform(), options);
    CHECK_OK(made.status());
    store = std::move(made.value());
  }

  std::string Write(const char* name, uint32_t type, uint64_t value_bytes, uint64_t rows,
                    std::unique_ptr<ModelFile>* file) {
    GgufWriter writer;
    writer.String("general.architecture", "olmoe");
    writer.U32("olmoe.expert_used_count", 2);
    for (int l = 0; l < kLayers; l++) {
      const std::string block = "blk." + std::to_string(l) + ".ffn_";
      const uint64_t n_bytes = 64 * rows * value_bytes * kExperts;
      writer.Add(block + "up_exps.weight", type, {64, rows, kExperts}, n_bytes);
      writer.Add(block + "gate_exps.weight", type, {64, rows, kExperts}, n_bytes);
      writer.Add(block + "down_exps.weight", type, {rows, 64, kExperts}, n_bytes);
    }
    std::string bytes = writer.Bytes();
    Result<ModelFile> opened = ModelFile::Open(folder.Write(name, bytes));
    CHECK_OK(opened.status());
    *file = std::make_unique<ModelFile>(std::move(opened.value()));
    return bytes;
  }

  // Runs an event of which `wished` may be coarse, and checks every byte of what came.
  Status Run(int layer, const std::vector<uint16_t>& experts, const std::vector<uint16_t>& wished) {
    Event event;
    event.layer = layer;
    event.step = step++;
    event.experts = experts.data();
    event.n = static_cast<int>(experts.size());
    store->coarse()->Wish(wished);
    store->BeginStep();
    REMOE_RETURN_IF_ERROR(store->BeginEvent(event));
    size_t n_whole = 0;
    Status status;
    while (status.ok() && n_whole < experts.size()) {
      std::vector<Arrival> arrived;
      store->Wait(true, &arrived);
      for (const Arrival& arrival : arrived) {
        if (arrival.kind == Arrival::Kind::kFailed) status = arrival.status;
        if (arrival.kind == Arrival::Kind::kWeights) n_whole++;
        const bool all_but_down = arrival.kind == Arrival::Kind::kAllButDown;
        if (arrival.kind != Arrival::Kind::kFailed) {
          CheckBytes(layer, arrival.expert, all_but_down ? 2 : 3);
        }
      }
    }
    const Status ended = store->EndEvent();
    CHECK_EQ(ended.ok(), status.ok());
    store->EndStep();
    return status;
  }

  void CheckBytes(int layer, uint16_t expert, int n_matrices) const {
    const bool is_coarse = store->coarse()->IsCoarse(layer, expert);
    const SlotId slot = store->cache().SlotOf(layer, expert);
    const uint8_t* data = store->slab().data() + slot * layout->slot_bytes();
    for (int m = 0; m < n_matrices; m++) {
      const ExpertMatrix& matrix = (is_coarse ? coarse_layers : layers)[layer].matrices[m];
      const uint64_t at = (is_coarse ? *coarse_layout : *layout).at(layer, m).offset;
      const std::string& bytes = is_coarse ? coarse_bytes : own_bytes;
      CHECK_EQ(std::memcmp(data + at, &bytes[matrix.offset + expert * matrix.expert_bytes],
                           matrix.expert_bytes),
               0);
    }
  }

  TemporaryFolder folder;
  std::string own_bytes, coarse_bytes;
  std::unique_ptr<ModelFile> own, coarse;
  std::vector<ExpertLayer> layers, coarse_layers;
  std::unique_ptr<SlotLayout> layout, coarse_layout;
  std::unique_ptr<Reader> reader;
  std::unique_ptr<ExpertStore> store;
  int64_t step = 0;
};

TEST(WishedMissesComeCoarseAndCountWhatWasRead) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged);
    const uint64_t own = fixture.layers[0].expert_bytes();
    const uint64_t less = fixture.coarse_layers[0].expert_bytes();
    CHECK_EQ(less * 2, own);
    CHECK_OK(fixture.Run(0, {0, 1, 2}, {1, 2}));
    CHECK(!fixture.store->coarse()->IsCoarse(0, 0) && fixture.store->coarse()->IsCoarse(0, 2));
    CHECK_EQ(fixture.store->counts().bytes_read, own + 2 * less);
    CHECK_EQ(fixture.store->counts().coarse_bytes, 2 * less);
    // Residents keep their form, whatever is wished.
    CHECK_OK(fixture.Run(0, {0, 1}, {0, 1}));
    CHECK(!fixture.store->coarse()->IsCoarse(0, 0) && fixture.store->coarse()->IsCoarse(0, 1));
    CHECK_EQ(fixture.store->counts().hits, 2u);
    CHECK_EQ(fixture.store->counts().bytes_read, own + 2 * less);
  }
}

TEST(WhoeverNeedsBetterDropsTheCoarseCopy) {
  Fixture fixture(false);
  CHECK_OK(fixture.Run(1, {3}, {3}));
  fixture.store->Drop(1, 3);
  CHECK_OK(fixture.Run(1, {3}, {}));
  CHECK(!fixture.store->coarse()->IsCoarse(1, 3));
  CHECK_EQ(fixture.store->counts().misses, 2u);
}

TEST(AWishIsForOneEvent) {
  Fixture fixture(true);
  CHECK_OK(fixture.Run(0, {0}, {5}));
  Event event;
  const uint16_t expert = 5;
  event.experts = &expert;
  event.n = 1;
  fixture.store->BeginStep();
  CHECK_OK(fixture.store->BeginEvent(event));
  CHECK(!fixture.store->coarse()->IsCoarse(0, 5));
  CHECK_OK(fixture.store->EndEvent());
}

TEST(ManyInTurnKeepTheirBytesAndTheirForm) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 4);
    for (uint32_t i = 0, state = 1; i < 200; i++) {
      state = state * 1664525u + 1013904223u;
      const uint16_t first = state >> 8 & 7, second = (first + 1 + (state >> 16 & 3)) & 7;
      std::vector<uint16_t> wished;
      if (state >> 20 & 1) wished.push_back(first);
      if (state >> 21 & 1) wished.push_back(second);
      CHECK_OK(fixture.Run(state >> 24 & 1, {first, second}, wished));
    }
    if (!staged) continue;
    // The same bytes after residents have moved.
    fixture.store->Resize(2, 0, 2);
    for (int layer = 0; layer < kLayers; layer++) {
      for (uint16_t e = 0; e < kExperts; e++) {
        if (fixture.store->cache().SlotOf(layer, e) != kNoSlot) fixture.CheckBytes(layer, e, 3);
      }
    }
  }
}

TEST(AFailedReadNamesTheFileAndLeavesNothingBehind) {
  Fixture fixture(false);
  FaultPlan plan;
  plan.range_file = 1;
  plan.range_bytes = UINT64_MAX;
  fixture.reader->SetFaults(plan);
  const Status status = fixture.Run(0, {1, 2}, {2});
  CHECK(status.code() == Code::kIo);
  CHECK(status.message().find("layer 0, expert 2, ") != std::string::npos);
  CHECK(status.message().find("c.gguf") != std::string::npos);
  CHECK(fixture.store->cache().SlotOf(0, 1) != kNoSlot);
  CHECK_EQ(fixture.store->cache().SlotOf(0, 2), kNoSlot);
  fixture.reader->SetFaults(FaultPlan());
  CHECK_OK(fixture.Run(0, {1, 2}, {2}));
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Slots that the CPU cannot reach: what storage reads passes through staging and is written where the
// layout says, byte for byte, whatever was evicted for it.
#include "runtime/slot_memory.h"

#include <cstring>
#include <mutex>
#include <vector>

#include "runtime/expert_store.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr int kLayers = 3, kExperts = 8, kSlots = 5, kBuffers = 2;

// A device's memory, as far as a store knows one.
class FarMemory : public SlotMemory {
 public:
  FarMemory(uint64_t slab_bytes, uint64_t staging_bytes)
      : slab_(slab_bytes), near_(staging_bytes + kPage), staging_bytes_(staging_bytes) {}
  void Write(uint64_t offset, const uint8_t* bytes, uint64_t n_bytes,
             uint64_t room_bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    CHECK(offset + room_bytes <= slab_.size());
    CHECK(bytes >= staging() && bytes + n_bytes <= staging() + staging_bytes_);
    std::memcpy(slab_.data() + offset, bytes, n_bytes);
    std::memset(slab_.data() + offset + n_bytes, 0, room_bytes - n_bytes);
  }
  uint8_t* staging() override {
    const auto at = reinterpret_cast<uintptr_t>(near_.data());
    return reinterpret_cast<uint8_t*>((at + kPage - 1) / kPage * kPage);
  }
  uint64_t staging_bytes() const override { return staging_bytes_; }
  const uint8_t* at(uint64_t offset) const { return slab_.data() + offset; }

 private:
  std::mutex mutex_;
  std::vector<uint8_t> slab_, near_;
  const uint64_t staging_bytes_;
};

struct Model {
  Model() {
    GgufWriter writer;
    writer.String("general.architecture", "olmoe");
    writer.U32("olmoe.expert_used_count", 2);
    writer.Add("token_embd.weight", 0, {32, 5}, 640);
    for (int l = 0; l < kLayers; l++) {
      const std::string block = "blk." + std::to_string(l) + ".ffn_";
      for (const char* name : {"up", "gate"}) {
        writer.Add(block + name + "_exps.weight", 0, {32, 64, kExperts}, 32 * 64 * 4 * kExperts);
      }
      writer.Add(block + "down_exps.weight", 0, {64, 32, kExperts}, 64 * 32 * 4 * kExperts);
    }
    bytes = writer.Bytes();
    Result<ModelFile> opened = ModelFile::Open(folder.Write("m.gguf", bytes));
    CHECK_OK(opened.status());
    file = std::make_unique<ModelFile>(std::move(opened.value()));
    layers = file->ExpertLayers().value();
    ReaderOptions options;
    options.backend = "pread";
    options.depth = 4;
    reader = std::move(OpenReader(file->paths(), options).value());
    rules.align = 256;
    rules.stride = 256 * 9;
    rules.staged = true;
    for (const ExpertLayer& layer : layers) {
      rules.room.emplace_back();
      for (const ExpertMatrix& matrix : layer.matrices) {
        rules.room.back().push_back(matrix.expert_bytes + 100);
      }
    }
  }
  SlotLayout layout() const {
    return SlotLayout(layers, std::vector<std::vector<bool>>(kLayers, std::vector<bool>(3, false)),
                      rules);
  }
  TemporaryFolder folder;
  std::string bytes;
  std::unique_ptr<ModelFile> file;
  std::vector<ExpertLayer> layers;
  std::unique_ptr<Reader> reader;
  SlotRules rules;
};

TEST(ALayoutKeepsADevicesRules) {
  const Model model;
  const SlotLayout layout = model.layout();
  CHECK_EQ(layout.slot_bytes() % model.rules.stride, 0u);
  for (int l = 0; l < kLayers; l++) {
    uint64_t end = 0;
    for (int m = 0; m < 3; m++) {
      // Pages of the file would do for reading in place; a device cannot be read into.
      CHECK(!layout.at(l, m).in_place);
      CHECK_EQ(layout.at(l, m).offset % model.rules.align, 0u);
      CHECK(layout.at(l, m).offset >= end);
      end = layout.at(l, m).offset + model.rules.room[l][m];
    }
    CHECK(end <= layout.slot_bytes());
  }
}

TEST(WhatIsReadLiesInTheMemoryAsItIsInTheFile) {
  Model model;
  const SlotLayout layout = model.layout();
  const uint64_t staging_bytes = kBuffers * Staging::BufferBytes(layout.staged_bytes());
  const auto memory = std::make_shared<FarMemory>(layout.slot_bytes() * kSlots, staging_bytes);
  StoreOptions options;
  options.n_slots = options.event_slots = kSlots;
  options.policy = "lru";
  options.staging_buffers = kBuffers;
  options.memory = memory;
  Result<std::unique_ptr<ExpertStore>> made = ExpertStore::Make(
      model.file.get(), &model.layers, layout, model.reader.get(), Transform(), options);
  CHECK_OK(made.status());
  ExpertStore& store = *made.value();
  CHECK_EQ(store.budget_bytes(), layout.slot_bytes() * kSlots + staging_bytes);
  for (int step = 0; step < 40; step++) {
    const int turn = step / 2;  // the second time, both are resident
    const std::vector<uint16_t> experts = {static_cast<uint16_t>(turn * 5 % kExperts),
                                           static_cast<uint16_t>((turn * 5 + 3) % kExperts)};
    Event event;
    event.layer = turn % kLayers;
    event.step = step;
    event.experts = experts.data();
    event.n = 2;
    store.BeginStep();
    CHECK_OK(store.BeginEvent(event));
    for (size_t arrived_all = 0; arrived_all < experts.size();) {
      std::vector<Arrival> arrived;
      store.Wait(false, &arrived);
      arrived_all += arrived.size();
    }
    for (const Placement& placement : store.placements()) {
      for (int m = 0; m < 3; m++) {
        const ExpertMatrix& matrix = model.layers[event.layer].matrices[m];
        const uint8_t* there =
            memory->at(placement.slot * layout.slot_bytes() + layout.at(event.layer, m).offset);
        const char* wanted =
            model.bytes.data() + matrix.offset + placement.expert * matrix.expert_bytes;
        CHECK(std::memcmp(there, wanted, matrix.expert_bytes) == 0);
        // Kernels read beyond the end, and find zeros.
        for (int i = 0; i < 100; i++) CHECK_EQ(there[matrix.expert_bytes + i], 0);
      }
    }
    CHECK_OK(store.EndEvent());
    store.EndStep();
  }
  CHECK(store.counts().misses > kSlots && store.counts().hits >= 40);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

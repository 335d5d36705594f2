#include "runtime/expert_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "testing/check.h"
#include "testing/gguf_writer.h"
#include "testing/populate.h"

namespace remoe {
namespace {

using testing::GgufWriter;
using testing::TemporaryFolder;

constexpr int kLayers = 4, kExperts = 16;

// A store over a small model whose experts are read in place, or staged, where a matrix is no
// multiple of a page.
struct Fixture {
  explicit Fixture(bool staged, int n_slots, int n_reserved, const std::string& backend = "pread",
                   const std::string& policy = "lru", int depth = 0) {
    GgufWriter writer;
    writer.String("general.architecture", "olmoe");
    writer.U32("olmoe.expert_used_count", 2);
    writer.Add("token_embd.weight", 0, {32, 5}, 640);
    const uint64_t rows = staged ? 33 : 64;
    for (int l = 0; l < kLayers; l++) {
      const std::string block = "blk." + std::to_string(l) + ".";
      for (const char* name : {"up", "gate"}) {
        writer.Add(block + "ffn_" + name + "_exps.weight", 0, {32, rows, kExperts},
                   32 * rows * 4 * kExperts);
      }
      writer.Add(block + "ffn_down_exps.weight", 0, {rows, 32, kExperts}, 32 * rows * 4 * kExperts);
    }
    bytes = writer.Bytes();
    Result<ModelFile> opened = ModelFile::Open(folder.Write("m.gguf", bytes));
    CHECK_OK(opened.status());
    model = std::make_unique<ModelFile>(std::move(opened.value()));
    layers = model->ExpertLayers().value();
    ReaderOptions reader_options;
    reader_options.backend = backend;
    reader_options.depth = depth;
    reader_options.piece_bytes = kPage;
    Result<std::unique_ptr<Reader>> reader = OpenReader(model->paths(), reader_options);
    missing = !reader.ok();
    if (missing) return;
    storage = std::move(reader.value());
    StoreOptions options;
    options.n_slots = n_slots;
    options.n_reserved = n_reserved;
    options.event_slots = n_slots / 2;
    options.policy = policy;
    options.staging_buffers = 3;
    const SlotLayout layout(layers,
                            std::vector<std::vector<bool>>(kLayers, std::vector<bool>(3, false)));
    Result<std::unique_ptr<ExpertStore>> made =
        ExpertStore::Make(model.get(), &layers, layout, storage.get(), Transform(), options);
    CHECK_OK(made.status());
    store = std::move(made.value());
  }

  uint64_t expert_bytes() const { return layers[0].expert_bytes(); }

  // Runs an event as a step does, and checks that what arrives is there.
  Status Run(int layer, const std::vector<uint16_t>& experts, int n_tokens = 1,
             int n_expendable = 0) {
    Event event;
    event.layer = layer;
    event.step = step++;
    event.n_tokens = n_tokens;
    event.phase = n_tokens > 1 ? Phase::kPrefill : Phase::kDecode;
    event.experts = experts.data();
    event.n = static_cast<int>(experts.size());
    event.n_expendable = n_expendable;
    store->BeginStep();
    REMOE_RETURN_IF_ERROR(store->BeginEvent(event));
    std::set<uint16_t> whole, partial;
    Status status;
    at_once.clear();
    while (status.ok() && whole.size() < experts.size()) {
      std::vector<Arrival> arrived;
      store->Wait(true, &arrived);
      CHECK(!arrived.empty());
      for (const Arrival& arrival : arrived) {
        const size_t n_matrices = layers[layer].matrices.size();
        if (arrival.kind == Arrival::Kind::kFailed) {
          status = arrival.status;
        } else if (arrival.kind == Arrival::Kind::kAllButDown) {
          CHECK(partial.insert(arrival.expert).second && whole.count(arrival.expert) == 0);
          CheckBytes(layer, PlacementOf(arrival.expert), n_matrices - 1);
        } else {
          CHECK(whole.insert(arrival.expert).second);
          CheckBytes(layer, PlacementOf(arrival.expert), n_matrices);
          if (partial.empty() && whole.size() <= arrived.size()) at_once.insert(arrival.expert);
        }
      }
    }
    if (status.ok()) {
      for (const Placement& placement : store->placements())
        CheckBytes(layer, placement, layers[layer].matrices.size());
    }
    const Status ended = store->EndEvent();
    CHECK_EQ(ended.ok(), status.ok());
    store->EndStep();
    return status.ok() ? ended : status;
  }

  const Placement& PlacementOf(uint16_t expert) const {
    for (const Placement& placement : store->placements()) {
      if (placement.expert == expert) return placement;
    }
    CHECK(!"an expert that was not asked for");
    return store->placements().front();
  }

  // The slot holds what the file holds, of the first n matrices.
  void CheckBytes(int layer, const Placement& placement, size_t n) {
    for (size_t m = 0; m < n; m++) {
      const ExpertMatrix& matrix = layers[layer].matrices[m];
      const char* wanted = bytes.data() + matrix.offset + placement.expert * matrix.expert_bytes;
      const uint8_t* is = store->matrix(placement.slot, layer, static_cast<int>(m));
      CHECK(std::memcmp(is, wanted, matrix.expert_bytes) == 0);
    }
  }

  int Plan(int layer, const std::vector<uint16_t>& experts, PrefetchPriority priority) {
    PrefetchPlan plan;
    for (const uint16_t expert : experts) plan.wanted.push_back({layer, expert});
    plan.priority = priority;
    return store->Prefetch(plan);
  }

  // Until that many reads have ended, whatever became of them.
  void AwaitReads(uint64_t n) {
    for (int i = 0; i < 5000; i++) {
      const ReaderCounts counts = storage->counts();
      if (counts.reads + counts.errors >= n) {
        storage->Drain();  // counted before the store is told
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(!"the reads did not end");
  }

  TemporaryFolder folder;
  std::string bytes;
  std::unique_ptr<ModelFile> model;
  std::vector<ExpertLayer> layers;
  std::unique_ptr<Reader> storage;
  std::unique_ptr<ExpertStore> store;
  bool missing = false;  // the backend, on this machine
  int64_t step = 0;
  std::set<uint16_t> at_once;  // of the last event, what the first wait gave
};

TEST(AnExpertThatLacksDownAloneIsHandedOutOnce) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 8, 0, "pread", "lru", 1);
    FaultPlan slow;
    slow.delay_us = 50000;  // one read after the other, and time to be heard between them
    fixture.storage->SetFaults(slow);
    CHECK_OK(fixture.Run(1, {3, 5}));
    CHECK_EQ(fixture.store->counts().partial_misses, 2u);
    CHECK_OK(fixture.Run(1, {3, 5}));
    CHECK_EQ(fixture.store->counts().partial_misses, 2u);
    // Down of one fails: its expert was begun all the same, and is read again by the next event.
    FaultPlan broken = slow;
    const ExpertMatrix& down = fixture.layers[2].matrices[2];
    broken.range_file = 0;
    broken.range_offset = down.offset + 7 * down.expert_bytes;
    broken.range_bytes = down.expert_bytes;
    fixture.storage->SetFaults(broken);
    CHECK(!fixture.Run(2, {7}).ok());
    CHECK_EQ(fixture.store->counts().partial_misses, 3u);
    fixture.storage->SetFaults(FaultPlan());
    CHECK_OK(fixture.Run(2, {7}));
  }
}

TEST(WhatIsPrefetchedIsAMissThatNeedsNoReading) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 8, 2);
    fixture.Plan(1, {3, 5}, PrefetchPriority::kToken);
    fixture.AwaitReads(6);
    CHECK_OK(fixture.Run(1, {5, 3, 7}));
    CHECK(fixture.at_once.count(5) == 1 && fixture.at_once.count(3) == 1);
    const StoreCounts counts = fixture.store->counts();
    CHECK_EQ(counts.misses, 3u);
    CHECK_EQ(counts.prefetched_misses, 2u);
    CHECK_EQ(counts.bytes_read, 3 * fixture.expert_bytes());
    CHECK_EQ(counts.prefetch_useful_bytes, 2 * fixture.expert_bytes());
    CHECK_EQ(counts.prefetch_wasted_bytes, 0u);
    CHECK_OK(fixture.Run(1, {3, 5, 7}));
    CHECK_EQ(fixture.store->counts().hits, 3u);
  }
}

TEST(NothingIsReadWithoutReservedSlotsWhileDecoding) {
  Fixture fixture(false, 8, 0);
  fixture.Plan(1, {3, 5}, PrefetchPriority::kToken);
  CHECK_EQ(fixture.store->cache().n_prefetched(), 0);
  CHECK_OK(fixture.Run(1, {3}));
  CHECK_EQ(fixture.store->counts().prefetched_misses, 0u);
}

TEST(WhatNobodyAskedForIsWastedAndItsSlotFree) {
  Fixture fixture(false, 4, 1);
  CHECK_OK(fixture.Run(0, {0, 1, 2}));
  fixture.Plan(1, {3}, PrefetchPriority::kToken);
  fixture.AwaitReads(4 * 3);
  CHECK_EQ(fixture.store->cache().n_prefetched(), 1);
  CHECK_OK(fixture.Run(1, {4}));
  fixture.Plan(2, {6}, PrefetchPriority::kToken);
  StoreCounts counts = fixture.store->counts();
  CHECK_EQ(counts.prefetch_wasted_bytes, fixture.expert_bytes());
  CHECK_EQ(counts.prefetch_given_up, 1u);
  CHECK_EQ(counts.bytes_read, 4 * fixture.expert_bytes());
  CHECK_EQ(fixture.store->cache().n_prefetched(), 1);  // the slot serves the next guess
  // LRU over three slots, as if nothing had been prefetched: 0 left, 1 and 2 are there.
  CHECK_OK(fixture.Run(0, {1, 2}));
  CHECK_EQ(fixture.store->counts().hits, 2u);
}

TEST(AFailedGuessIsReadAgainWhenItIsWanted) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 8, 2);
    FaultPlan faults;
    faults.fail_operation = 0;
    fixture.storage->SetFaults(faults);
    fixture.Plan(1, {3}, PrefetchPriority::kToken);
    fixture.AwaitReads(1);
    CHECK_EQ(fixture.storage->counts().errors, 1u);
    CHECK_OK(fixture.Run(1, {3}));
    CHECK_EQ(fixture.store->counts().bytes_read, fixture.expert_bytes());
    CHECK_OK(fixture.Run(1, {3}));
    CHECK_EQ(fixture.store->counts().hits, 1u);
  }
}

TEST(AGuessThatFailsForeverFailsItsEventAndNoOther) {
  Fixture fixture(false, 8, 2);
  FaultPlan faults;
  faults.range_file = 0;
  faults.range_offset = fixture.layers[1].matrices[0].offset;
  faults.range_bytes = 1 << 20;
  fixture.storage->SetFaults(faults);
  fixture.Plan(1, {3}, PrefetchPriority::kToken);
  fixture.AwaitReads(1);
  CHECK_OK(fixture.Run(0, {1, 2}));
  const Status status = fixture.Run(1, {3});
  CHECK_EQ(status.ok(), false);
  CHECK(status.message().find("layer 1, expert 3") != std::string::npos);
  fixture.storage->SetFaults(FaultPlan());
  CHECK_OK(fixture.Run(1, {3}));
  CHECK_OK(fixture.Run(0, {1, 2}));
  CHECK_EQ(fixture.store->counts().hits, 2u);
}

TEST(APlanForTheStartMakesResidents) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 8, 2);
    // Twice the same expert, one that does not exist, and no more than residents may have.
    CHECK_EQ(fixture.Plan(1, {3, 5, 3, 99, 6, 7, 8, 9, 10, 11}, PrefetchPriority::kStart), 6);
    fixture.store->FinishStart();
    StoreCounts counts = fixture.store->counts();
    CHECK_EQ(counts.start_experts, 6u);
    CHECK_EQ(counts.start_bytes, 6 * fixture.expert_bytes());
    CHECK_EQ(fixture.store->cache().resident(), 6);
    CHECK_EQ(fixture.store->cache().n_prefetched(), 0);
    CHECK_EQ(fixture.Plan(1, {3, 5}, PrefetchPriority::kStart), 0);
    CHECK_OK(fixture.Run(1, {3, 5, 6}));
    counts = fixture.store->counts();
    CHECK_EQ(counts.hits, 3u);
    CHECK_EQ(counts.bytes_read, 0u);
  }
}

TEST(AnEventEndsAPlanForTheStartAndGoesOnWithItsOwn) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 8, 0);
    FaultPlan slow;
    slow.delay_us = 3000;
    fixture.storage->SetFaults(slow);
    fixture.Plan(1, {3, 5, 6, 7}, PrefetchPriority::kStart);
    CHECK_OK(fixture.Run(1, {7, 6}));
    CHECK_EQ(fixture.store->cache().n_prefetched(), 0);
    const StoreCounts counts = fixture.store->counts();
    CHECK_EQ(counts.hits + counts.misses, 2u);
    CHECK_EQ(counts.bytes_read, counts.misses * fixture.expert_bytes());
    CHECK_EQ(fixture.storage->counts().bytes,
             counts.bytes_read + counts.start_bytes + counts.start_dropped_bytes);
  }
}

TEST(AStoreThatCannotBeMadeLeavesNothingBehind) {
  Fixture fixture(true, 8, 0);
  StoreOptions options;
  options.n_slots = 8;
  options.staging_buffers = 1 << 30;
  options.policy = "lru";
  const SlotLayout layout(fixture.layers,
                          std::vector<std::vector<bool>>(kLayers, std::vector<bool>(3, false)));
  const auto made = ExpertStore::Make(fixture.model.get(), &fixture.layers, layout,
                                      fixture.storage.get(), Transform(), options);
  CHECK(made.status().code() == Code::kOutOfMemory);
  options.policy = "no such policy";
  CHECK(!ExpertStore::Make(fixture.model.get(), &fixture.layers, layout, fixture.storage.get(),
                           Transform(), options)
             .ok());
  CHECK_OK(fixture.Run(0, {1, 2}));  // the reader is as good as before
}

// Waits until of the pages of `data` exactly the first n_present are there.
bool FirstPresent(uint8_t* data, size_t n_pages, size_t n_present) {
  std::vector<unsigned char> present(n_pages);
  for (int i = 0; i < 2000; i++) {
    CHECK_EQ(mincore(data, n_pages * kPage, present.data()), 0);
    size_t n = 0;
    while (n < n_pages && (present[n] & 1) != 0) n++;
    const size_t rest = std::count_if(present.begin() + n, present.end(),
                                      [](unsigned char page) { return (page & 1) != 0; });
    if (n == n_present && rest == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

TEST(PagesArePresentBeforeTheirUse) {
  constexpr size_t kPages = 64;
  Result<std::unique_ptr<Slab>> slab = Slab::Make(kPages * kPage, kPages * kPage, false);
  CHECK_OK(slab.status());
  uint8_t* data = slab.value()->data();
  if (!CanPopulate()) return;
  Populator populator(data, kPages * kPage, 8 * kPage);
  CHECK(FirstPresent(data, kPages, 8));
  std::memset(data, 7, 12 * kPage);  // as reads do, which may be faster
  populator.Used(12 * kPage);
  CHECK(FirstPresent(data, kPages, 20));
  populator.Used(3 * kPage);  // not news
  CHECK(FirstPresent(data, kPages, 20));
  std::memset(data, 7, kPages * kPage);
  populator.Used(kPages * kPage);
  CHECK(FirstPresent(data, kPages, kPages));
  CHECK_EQ(data[5], 7);
}

size_t PagesPresent(const Slab& slab, uint64_t from, uint64_t to) {
  std::vector<unsigned char> present((to - from + kPage - 1) / kPage);
  CHECK_EQ(mincore(slab.data() + from, to - from, present.data()), 0);
  return std::count_if(present.begin(), present.end(),
                       [](unsigned char page) { return (page & 1) != 0; });
}

TEST(AStoreGivesSlotsBackAndTakesThemAgain) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 12, 0);
    ExpertStore& store = *fixture.store;
    const uint64_t slot_bytes = store.slab().n_bytes() / 12;
    for (int layer = 0; layer < 3; layer++) CHECK_OK(fixture.Run(layer, {0, 1, 2, 3}));
    const uint64_t before = store.budget_bytes();
    CHECK_EQ(store.cache().resident(), 12);

    // The policy says who leaves: of LRU, those of the first layer and half of the second.
    store.Resize(6, 0, 6);
    CHECK_EQ(store.n_slots(), 6);
    CHECK_EQ(store.most_slots(), 12);
    CHECK_EQ(store.budget_bytes(), before - 6 * slot_bytes);
    CHECK_EQ(store.counts().evictions, 6u);
    for (uint16_t e = 0; e < 4; e++) {
      CHECK_EQ(store.cache().SlotOf(0, e), kNoSlot);
      CHECK(store.cache().SlotOf(2, e) != kNoSlot && store.cache().SlotOf(2, e) < 6);
    }
    const uint64_t end = (6 * slot_bytes + kPage - 1) / kPage * kPage;
    CHECK_EQ(PagesPresent(store.slab(), end, store.slab().n_bytes()), 0u);

    // Who stayed is a hit, wherever it lies now, and its bytes are the file's (Run checks them).
    const uint64_t hits = store.counts().hits;
    CHECK_OK(fixture.Run(2, {0, 1, 2, 3}));
    CHECK_EQ(store.counts().hits, hits + 4);
    // Six at once are as many as there are now.
    CHECK(!fixture.Run(0, {0, 1, 2, 3, 4, 5, 6}).ok());
    CHECK_OK(store.EndEvent());

    store.Resize(12, 2, 8);
    CHECK_EQ(store.budget_bytes(), before);
    CHECK_EQ(store.cache().geometry().n_slots, 10);
    CHECK_EQ(store.event_slots(), 8);
    CHECK_OK(fixture.Run(0, {0, 1, 2, 3, 4, 5, 6}));
    CHECK_OK(fixture.Run(2, {0, 1, 2}));
  }
}

TEST(WhatIsPrefetchedIsGivenUpWhenSlotsAre) {
  Fixture fixture(false, 12, 4);
  CHECK_OK(fixture.Run(0, {0, 1, 2, 3}));
  std::vector<uint16_t> some = {4, 5, 6};
  fixture.Plan(1, some, PrefetchPriority::kToken);
  CHECK(fixture.store->cache().n_prefetched() > 0);
  fixture.store->Resize(4, 1, 2);
  CHECK_EQ(fixture.store->cache().n_prefetched(), 0);
  CHECK_EQ(fixture.store->cache().resident(), 3);
  CHECK_OK(fixture.Run(1, {4, 5, 6}));
}

TEST(APlanForTheStartIsResidentWhereItFitsWhenSlotsAreGivenBack) {
  Fixture fixture(false, 12, 0);
  std::vector<uint16_t> hot = {0, 1, 2, 3, 4, 5};
  fixture.Plan(1, hot, PrefetchPriority::kStart);
  fixture.storage->Drain();
  fixture.store->Resize(4, 0, 4);
  CHECK_EQ(fixture.store->cache().resident(), 4);
  CHECK_EQ(fixture.store->counts().start_experts, 6u);
  CHECK_OK(fixture.Run(1, {0, 1, 2, 3}));
}

TEST(ALockedSlabGivesBackToo) {
  constexpr uint64_t kBytes = 64 * kPage;
  Result<std::unique_ptr<Slab>> made = Slab::Make(kBytes, kBytes / 2, true);
  CHECK_OK(made.status());
  Slab& slab = *made.value();  // locked, or noted that it may not be
  CHECK_EQ(slab.locked(), slab.notes().empty());
  std::memset(slab.data(), 1, kBytes / 2);
  slab.Hold(kBytes / 4 + 1);
  CHECK_EQ(PagesPresent(slab, kBytes / 4 + kPage, kBytes), 0u);
  CHECK_EQ(PagesPresent(slab, 0, kBytes / 4 + kPage), 17u);
  CHECK_EQ(slab.data()[kBytes / 4], 1);
  slab.Hold(kBytes);
  CHECK_EQ(slab.data()[kBytes / 2], 0);
  CHECK_EQ(slab.data()[0], 1);
}

TEST(NothingIsPopulatedBeyondWhatIsHeld) {
  constexpr size_t kPages = 64;
  Result<std::unique_ptr<Slab>> slab = Slab::Make(kPages * kPage, kPages * kPage, false);
  CHECK_OK(slab.status());
  uint8_t* data = slab.value()->data();
  if (!CanPopulate()) return;
  Populator populator(data, kPages * kPage, 8 * kPage);
  populator.Used(40 * kPage);
  CHECK(FirstPresent(data + 40 * kPage, 24, 8));
  populator.Limit(20 * kPage);
  slab.value()->Hold(20 * kPage);
  CHECK(FirstPresent(data + 20 * kPage, 44, 0));
  CHECK_EQ(populator.present_bytes(), 20 * kPage);
  populator.Limit(kPages * kPage);
  slab.value()->Hold(kPages * kPage);
  populator.Used(30 * kPage);
  CHECK(FirstPresent(data + 30 * kPage, 34, 8));
}

TEST(APromptTakesExpendableSlotsAndLeavesAnEventItsRoom) {
  Fixture fixture(false, 12, 0);
  CHECK_OK(fixture.Run(0, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 32, 8));
  std::vector<uint16_t> all;
  for (uint16_t e = 0; e < kExperts; e++) all.push_back(e);
  fixture.Plan(1, all, PrefetchPriority::kPrompt);
  CHECK_EQ(fixture.store->cache().n_prefetched(), 6);  // of 12, half are an event's
  CHECK_EQ(fixture.store->cache().resident(), 6);
  for (uint16_t e = 8; e < 12; e++) CHECK(fixture.store->cache().SlotOf(0, e) != kNoSlot);
  // Of another layer, and more than what is free: the stream gives way.
  CHECK_OK(fixture.Run(2, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 32));
  CHECK_EQ(fixture.store->counts().misses, 22u);
  CHECK_EQ(fixture.store->counts().bytes_read, 22 * fixture.expert_bytes());
}

TEST(APromptsPrefetchIsPromotedWhereItStands) {
  for (const bool staged : {false, true}) {
    Fixture fixture(staged, 32, 0);
    FaultPlan slow;
    slow.delay_us = 300;
    fixture.storage->SetFaults(slow);
    std::vector<uint16_t> all;
    for (uint16_t e = 0; e < kExperts; e++) all.push_back(e);
    for (int layer = 0; layer < kLayers; layer++) {
      fixture.Plan(layer, all, PrefetchPriority::kPrompt);
      CHECK_OK(fixture.Run(layer, all, 64, 16));
    }
    const StoreCounts counts = fixture.store->counts();
    CHECK_EQ(counts.misses, 4u * kExperts);
    CHECK_EQ(counts.bytes_read, counts.misses * fixture.expert_bytes());
    CHECK_EQ(counts.prefetch_wasted_bytes, 0u);
    CHECK_EQ(fixture.storage->counts().bytes, counts.bytes_read);
  }
}

// Random events and guesses, right and wrong, over storage that hinders and fails: the bytes in the
// slots are the file's, the residents are those of a cache that knows nothing of guesses, and every
// byte that was read is accounted for.
void Stress(bool staged, const std::string& backend, const std::string& policy, bool stream) {
  constexpr int kSlots = 20, kReserved = 3;
  Fixture fixture(staged, kSlots, kReserved, backend, policy);
  if (fixture.missing) return;
  Geometry geometry;
  geometry.n_layers = kLayers;
  geometry.n_experts = kExperts;
  geometry.n_slots = kSlots - kReserved;
  Cache plain(geometry, std::move(MakePolicy(policy, geometry).value()));
  std::mt19937 random(7);
  const auto some = [&random](int n) {
    std::vector<uint16_t> experts;
    while (static_cast<int>(experts.size()) < n) {
      const uint16_t expert = static_cast<uint16_t>(random() % kExperts);
      if (std::find(experts.begin(), experts.end(), expert) == experts.end())
        experts.push_back(expert);
    }
    return experts;
  };
  uint64_t failed = 0;
  std::vector<uint16_t> experts = some(4);
  for (int i = 0; i < 400; i++) {
    const int layer = i % kLayers;
    FaultPlan faults;
    faults.short_bytes = random() % 4 == 0 ? kPage : 0;
    faults.interruptions = random() % 3;
    faults.delay_us = random() % 8 == 0 ? 200 : 0;
    if (stream && random() % 8 == 0) faults.fail_operation = random() % 6;
    fixture.storage->SetFaults(faults);
    const Status status = fixture.Run(layer, experts, stream ? 8 : 1, stream ? 1 : 0);
    if (!status.ok()) failed++;
    if (!stream) {
      CHECK_OK(status);
      Event event;
      event.layer = layer;
      event.step = i;
      event.experts = experts.data();
      event.n = static_cast<int>(experts.size());
      std::vector<Placement> placements;
      CHECK_OK(plain.Begin(event, &placements));
      plain.End();
      CHECK_EQ(fixture.store->counts().misses, plain.counts().misses);
    }
    experts = some(4);
    std::vector<uint16_t> guess = some(random() % 4);
    for (size_t g = 0; g < guess.size(); g++) {
      if (random() % 2 == 0 && std::find(guess.begin(), guess.end(), experts[g]) == guess.end())
        guess[g] = experts[g];
    }
    fixture.Plan((i + 1) % kLayers, guess,
                 stream ? PrefetchPriority::kPrompt : PrefetchPriority::kToken);
    if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    if (random() % 50 == 0) fixture.store->CancelPrefetch();
  }
  fixture.storage->SetFaults(FaultPlan());
  fixture.store->CancelPrefetch();
  for (int i = 0; i < 5000 && fixture.store->cache().n_prefetched() > 0; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    fixture.store->Prefetch(PrefetchPlan());
  }
  CHECK_EQ(fixture.store->cache().n_prefetched(), 0);
  const StoreCounts counts = fixture.store->counts();
  CHECK(counts.prefetch_useful_bytes > 0 && counts.prefetch_wasted_bytes > 0);
  CHECK_EQ(fixture.storage->counts().bytes, counts.bytes_read + counts.prefetch_wasted_bytes);
  if (failed == 0) CHECK_EQ(counts.bytes_read, counts.misses * fixture.expert_bytes());
  CHECK_EQ(failed > 0, stream);
}

TEST(GuessesChangeNeitherResidentsNorBytes) {
  for (const char* policy : {"lru", "lfru", "arc", "reuse-biased"}) {
    Stress(false, "pread", policy, false);
    Stress(true, "io_uring", policy, false);
  }
}

TEST(StreamsOverFailingStorageLoseNoByte) {
  Stress(false, "io_uring", "lru", true);
  Stress(true, "pread", "reuse-biased", true);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

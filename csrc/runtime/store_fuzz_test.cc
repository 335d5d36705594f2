// A state-machine fuzzer of the expert store: random models, caches, policies and readers; events,
// prefetch plans of every priority, faults, cancels, resizes, and events that are abandoned half-way,
// in any order. After every action it checks that the store still keeps its promises:
//
//     contents    every slot that is handed out holds the bytes of the file, down apart where only
//                 that is still to come
//     arrivals    each expert arrives once as a whole; none that was not asked for
//     failures    an event fails only where a read of it was made to fail
//     residents   no two experts share a slot; residents and prefetches never exceed the slots
//     memory      slots that were given back are not in memory; the rest keep their bytes
//     accounting  every byte that was read is counted once
//
//     store_fuzz_test                        some fixed seeds, as the test suite runs it
//     store_fuzz_test --seconds 3600 --seed 1    as long as that, with figures every minute
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "base/format.h"
#include "runtime/expert_store.h"
#include "testing/check.h"
#include "testing/fuzz_main.h"
#include "testing/gguf_writer.h"

namespace remoe {
namespace {

using Kind = Arrival::Kind;

struct Figures {
  uint64_t stores = 0, actions = 0, events = 0, failed_events = 0, abandoned_events = 0, plans = 0,
           experts = 0, shrinks = 0, grows = 0;
};

class Fuzz {
 public:
  explicit Fuzz(uint64_t seed, Figures* figures) : random_(seed), figures_(figures) {
    n_layers_ = 1 + Draw(4);
    n_experts_ = 2 + Draw(15);
    top_k_ = 1 + Draw(std::min(4, n_experts_));
    MakeModel();
    MakeStore();
    figures_->stores++;
  }

  void Run(int n_actions) {
    if (store_ == nullptr) return;
    for (int i = 0; i < n_actions && testing::Failures() == 0; i++) {
      Act();
      CheckInvariants();
      figures_->actions++;
    }
    reader_->SetFaults(FaultPlan());
    faulty_ = false;
    store_->CancelPrefetch();
    reader_->Drain();
    store_->Prefetch(PrefetchPlan());
    CHECK_EQ(store_->cache().n_prefetched(), 0);
    CheckAccounts();
    store_.reset();  // also in the midst of things: see Act
  }

 private:
  int Draw(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  bool Chance(int one_in) { return Draw(one_in) == 0; }

  void MakeModel() {
    testing::GgufWriter writer;
    writer.String("general.architecture", "olmoe");
    writer.U32("olmoe.expert_used_count", static_cast<uint32_t>(top_k_));
    writer.Add("token_embd.weight", 0, {32, 5}, 640);
    // Layers differ in whether they are read in place: whole pages, or not.
    for (int l = 0; l < n_layers_; l++) {
      const uint64_t rows = Chance(2) ? 32 : 33 + Draw(3);
      const uint64_t n = n_experts_;
      const std::string block = "blk." + std::to_string(l) + ".";
      for (const char* name : {"up", "gate"}) {
        writer.Add(block + "ffn_" + name + "_exps.weight", 0, {32, rows, n}, 32 * rows * 4 * n);
      }
      writer.Add(block + "ffn_down_exps.weight", 0, {rows, 32, n}, 32 * rows * 4 * n);
    }
    bytes_ = writer.Bytes();
    Result<ModelFile> opened = ModelFile::Open(folder_.Write("m.gguf", bytes_));
    CHECK_OK(opened.status());
    model_ = std::make_unique<ModelFile>(std::move(opened.value()));
    layers_ = model_->ExpertLayers().value();
  }

  void MakeStore() {
    ReaderOptions options;
    options.backend = Chance(2) ? "io_uring" : "pread";
    options.depth = 1 + Draw(6);
    options.background_depth = 1 + Draw(4);
    options.piece_bytes = kPage;
    options.direct = Chance(2);
    Result<std::unique_ptr<Reader>> reader = OpenReader(model_->paths(), options);
    if (!reader.ok()) {  // io_uring is not everywhere
      options.backend = "pread";
      reader = OpenReader(model_->paths(), options);
    }
    CHECK_OK(reader.status());
    if (!reader.ok()) return;
    reader_ = std::move(reader.value());

    StoreOptions store;
    const int total = n_layers_ * n_experts_;
    store.n_slots = Chance(3) ? top_k_ : std::min(total, top_k_ + Draw(total));
    store.n_reserved = Chance(2) ? 0 : Draw(std::max(1, std::min(5, store.n_slots - top_k_ + 1)));
    store.most_slots = Chance(2) ? 0 : store.n_slots + Draw(total);
    store.event_slots = std::max(top_k_, store.n_slots / 2);
    const std::vector<std::string> policies = LivePolicyNames();
    store.policy = policies[static_cast<size_t>(Draw(static_cast<int>(policies.size())))];
    store.staging_buffers = 1 + Draw(4);
    Transform transform;
    if (Chance(2)) {
      transform = [this](int layer, int m, const uint8_t* bytes, uint8_t* dest) {
        std::memcpy(dest, bytes, layers_[layer].matrices[m].expert_bytes);
      };
    }
    const std::vector<std::vector<bool>> transformed(n_layers_,
                                                     std::vector<bool>(3, transform && Chance(2)));
    const SlotLayout layout(layers_, transformed);
    slot_bytes_ = layout.slot_bytes();
    Result<std::unique_ptr<ExpertStore>> made =
        ExpertStore::Make(model_.get(), &layers_, layout, reader_.get(), transform, store);
    CHECK_OK(made.status());
    if (made.ok()) store_ = std::move(made.value());
  }

  void Act() {
    switch (Draw(13)) {
      case 0:
        Faults();
        break;
      case 1:
        store_->CancelPrefetch();
        break;
      case 2:
        Plan(PrefetchPriority::kStart);
        if (Chance(2)) store_->FinishStart();
        break;
      case 3:
        store_->FinishStart();
        break;
      case 4:
        store_->ShareReserved(Chance(2));
        break;
      case 5:
        std::this_thread::sleep_for(std::chrono::microseconds(Draw(500)));
        break;
      case 6:
      case 7:
        Plan(Chance(2) ? PrefetchPriority::kToken : PrefetchPriority::kPrompt);
        break;
      case 8:
        Resize();
        break;
      default:
        RunEvent();
    }
  }

  void Faults() {
    FaultPlan faults;
    faulty_ = Chance(2);
    if (faulty_) {
      faults.fail_operation = Chance(2) ? Draw(6) : faults.fail_operation;
      if (Chance(2)) {
        const ExpertMatrix& matrix = layers_[Draw(n_layers_)].matrices[Draw(3)];
        faults.range_file = 0;
        faults.range_offset = matrix.offset + Draw(n_experts_) * matrix.expert_bytes;
        faults.range_bytes = matrix.expert_bytes * (1 + Draw(3));
      }
    }
    faults.short_bytes = Chance(3) ? kPage : 0;
    faults.interruptions = Draw(3);
    faults.delay_us = Chance(3) ? Draw(300) : 0;
    reader_->SetFaults(faults);
    // A read that was begun under the faults before may still fail.
    tainted_ |= faulty_;
  }

  void Resize() {
    const int before = store_->n_slots();
    const int n_slots = top_k_ + Draw(store_->most_slots() - top_k_ + 1);
    const int n_reserved = Chance(2) ? 0 : Draw(std::min(5, n_slots - top_k_ + 1));
    store_->Resize(n_slots, n_reserved, std::max(top_k_, n_slots / 2));
    (n_slots < before ? figures_->shrinks : figures_->grows)++;
    CHECK_EQ(store_->cache().total_slots(), n_slots);
    CHECK_EQ(store_->cache().n_prefetched(), 0);
    CHECK_EQ(store_->slab().held_bytes(), slot_bytes_ * static_cast<uint64_t>(n_slots));
    CheckGivenBack();
    // Who stayed is where the cache says, with the bytes of the file, whether it has moved or not.
    for (int layer = 0; layer < n_layers_; layer++) {
      for (int expert = 0; expert < n_experts_; expert++) {
        Placement placement;
        placement.expert = static_cast<uint16_t>(expert);
        placement.slot = store_->cache().SlotOf(layer, expert);
        if (placement.slot != kNoSlot) CheckBytes(layer, placement, 3);
      }
    }
  }

  // A populator that was at work beyond the end gives it back a moment later.
  void CheckGivenBack() {
    const Slab& slab = store_->slab();
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t from = (slab.held_bytes() + page - 1) / page * page;
    if (from >= slab.n_bytes()) return;
    std::vector<unsigned char> present((slab.n_bytes() - from + page - 1) / page);
    for (int i = 0; i < 100000; i++) {
      CHECK_EQ(mincore(slab.data() + from, slab.n_bytes() - from, present.data()), 0);
      const auto there = [](unsigned char each) { return (each & 1) != 0; };
      if (std::none_of(present.begin(), present.end(), there)) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(!"memory that was given back is still there");
  }

  std::vector<uint16_t> SomeExperts(int n) {
    std::set<uint16_t> chosen;
    while (static_cast<int>(chosen.size()) < n)
      chosen.insert(static_cast<uint16_t>(Draw(n_experts_)));
    std::vector<uint16_t> experts(chosen.begin(), chosen.end());
    std::shuffle(experts.begin(), experts.end(), random_);
    return experts;
  }

  void Plan(PrefetchPriority priority) {
    PrefetchPlan plan;
    plan.priority = priority;
    const int n = Draw(2 * n_experts_);
    for (int i = 0; i < n; i++) {
      // Some twice, some that do not exist, and those of the next event more often.
      PrefetchRequest request;
      request.layer = Chance(3) ? Draw(n_layers_ + 1) : next_layer_;
      request.expert = static_cast<uint16_t>(Draw(n_experts_ + 1));
      plan.wanted.push_back(request);
    }
    store_->Prefetch(plan);
    figures_->plans++;
  }

  void RunEvent() {
    const Geometry& geometry = store_->cache().geometry();
    const int most = std::min(n_experts_, geometry.n_slots);
    const bool prompt = Chance(3);
    const int n = prompt ? 1 + Draw(most) : std::min(top_k_, most);
    const std::vector<uint16_t> experts = SomeExperts(n);
    Event event;
    event.layer = next_layer_;
    next_layer_ = (next_layer_ + (Chance(10) ? Draw(n_layers_) : 1)) % n_layers_;
    event.step = step_ += event.layer == 0 ? 1 : 0;
    event.phase = prompt ? Phase::kPrefill : Phase::kDecode;
    event.n_tokens = prompt ? n : 1;
    event.experts = experts.data();
    event.n = n;
    event.n_expendable = prompt ? Draw(n + 1) : 0;
    store_->BeginStep();
    const Status placed = store_->BeginEvent(event);
    CHECK_OK(placed);
    if (!placed.ok()) return;
    figures_->events++;
    const bool abandoned = Chance(12);
    Status failure;
    std::set<uint16_t> whole, partial;
    while (!abandoned && failure.ok() && whole.size() < experts.size()) {
      std::vector<Arrival> arrived;
      store_->Wait(Chance(2), &arrived);
      CHECK(!arrived.empty());
      if (Chance(20)) Plan(PrefetchPriority::kToken);
      for (const Arrival& arrival : arrived) Arrived(event, arrival, &whole, &partial, &failure);
    }
    if (Chance(8)) Plan(Chance(2) ? PrefetchPriority::kPrompt : PrefetchPriority::kToken);
    if (Chance(20)) CHECK_EQ(store_->Prefetch({PrefetchPriority::kStart, {}}), 0);
    if (failure.ok() && !abandoned) {
      for (const Placement& placement : store_->placements()) CheckBytes(event.layer, placement, 3);
    }
    const Status ended = store_->EndEvent();
    store_->EndStep();
    if (!ended.ok()) figures_->failed_events++;
    if (abandoned) figures_->abandoned_events++;
    CHECK(failure.ok() || !ended.ok());
    if (!ended.ok() && !tainted_) CHECK_OK(ended);
    if (!ended.ok()) failed_ = true;
    // Once nothing fails and nothing is in flight from before, nothing may fail any more.
    if (!faulty_ && tainted_) {
      store_->CancelPrefetch();
      reader_->Drain();
      tainted_ = false;
    }
  }

  void Arrived(const Event& event, const Arrival& arrival, std::set<uint16_t>* whole,
               std::set<uint16_t>* partial, Status* failure) {
    figures_->experts++;
    const auto& placements = store_->placements();
    const auto placement =
        std::find_if(placements.begin(), placements.end(),
                     [&](const Placement& each) { return each.expert == arrival.expert; });
    CHECK(placement != placements.end());
    if (placement == placements.end()) return;
    switch (arrival.kind) {
      case Kind::kWeights:
        CHECK(whole->insert(arrival.expert).second);
        CheckBytes(event.layer, *placement, 3);
        break;
      case Kind::kAllButDown:
        CHECK(partial->insert(arrival.expert).second && whole->count(arrival.expert) == 0);
        CheckBytes(event.layer, *placement, 2);
        break;
      case Kind::kFailed:
        CHECK(!arrival.status.ok());
        *failure = arrival.status;
        break;
      case Kind::kRows:
        CHECK(!"nobody computes rows here");
    }
  }

  void CheckBytes(int layer, const Placement& placement, int n_matrices) {
    for (int m = 0; m < n_matrices; m++) {
      const ExpertMatrix& matrix = layers_[layer].matrices[m];
      const char* wanted = bytes_.data() + matrix.offset + placement.expert * matrix.expert_bytes;
      CHECK(std::memcmp(store_->matrix(placement.slot, layer, m), wanted, matrix.expert_bytes) ==
            0);
    }
  }

  void CheckInvariants() {
    const Cache& cache = store_->cache();
    std::set<SlotId> used;
    int resident = 0, prefetched = 0;
    for (int layer = 0; layer < n_layers_; layer++) {
      for (int expert = 0; expert < n_experts_; expert++) {
        const SlotId slot = cache.SlotOf(layer, expert);
        const SlotId reserved = cache.PrefetchSlotOf(layer, expert);
        CHECK(slot == kNoSlot || reserved == kNoSlot);
        resident += slot != kNoSlot;
        prefetched += reserved != kNoSlot;
        for (const SlotId each : {slot, reserved}) {
          if (each != kNoSlot) CHECK(each < cache.total_slots() && used.insert(each).second);
        }
      }
    }
    CHECK_EQ(resident, cache.resident());
    CHECK_EQ(prefetched, cache.n_prefetched());
    CHECK(resident + prefetched <= cache.total_slots());
    CHECK(!store_->open());
  }

  void CheckAccounts() {
    const StoreCounts counts = store_->counts();
    CHECK_EQ(reader_->counts().bytes, counts.bytes_read + counts.prefetch_wasted_bytes +
                                          counts.start_bytes + counts.start_dropped_bytes);
    CHECK(counts.prefetch_useful_bytes <= counts.bytes_read);
    CHECK(counts.prefetched_misses <= counts.misses);
    uint64_t hits = 0, misses = 0;
    for (const LayerCounts& layer : store_->layer_counts()) {
      hits += layer.hits;
      misses += layer.misses;
    }
    CHECK(hits == counts.hits && misses == counts.misses);
  }

  std::mt19937_64 random_;
  Figures* const figures_;
  int n_layers_ = 0, n_experts_ = 0, top_k_ = 0;
  testing::TemporaryFolder folder_;
  std::string bytes_;
  uint64_t slot_bytes_ = 0;
  std::unique_ptr<ModelFile> model_;
  std::vector<ExpertLayer> layers_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<ExpertStore> store_;
  bool faulty_ = false, tainted_ = false, failed_ = false;
  int next_layer_ = 0;
  int64_t step_ = 0;
};

void Print(double seconds, uint64_t next_seed, const Figures& figures) {
  std::printf("%.0f s, next seed %" PRIu64 ": %" PRIu64 " stores, %" PRIu64 " actions, %" PRIu64
              " plans, %" PRIu64 " events (%" PRIu64 " failed, %" PRIu64 " abandoned), %" PRIu64
              " arrivals checked, %" PRIu64 " shrinks, %" PRIu64 " grows, %d failures\n",
              seconds, next_seed, figures.stores, figures.actions, figures.plans, figures.events,
              figures.failed_events, figures.abandoned_events, figures.experts, figures.shrinks,
              figures.grows, testing::Failures());
  std::fflush(stdout);
}

// Prints the figures every minute: a run that is ended early has said what it did.
int RunFor(double seconds, uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  Figures figures;
  double next_print = 60;
  while (elapsed() < seconds && testing::Failures() == 0) {
    Fuzz(seed, &figures).Run(300);
    if (testing::Failures() > 0) std::fprintf(stderr, "seed %" PRIu64 " failed\n", seed);
    seed++;
    if (elapsed() >= next_print) {
      Print(elapsed(), seed, figures);
      next_print += 60;
    }
  }
  Print(elapsed(), seed, figures);
  return testing::Failures() == 0 ? 0 : 1;
}

TEST(AStoreKeepsItsPromisesWhateverHappens) {
  Figures figures;
  for (uint64_t seed = 1; seed <= 30; seed++) {
    Fuzz(seed, &figures).Run(300);
    if (testing::Failures() > 0) {
      std::fprintf(stderr, "seed %" PRIu64 " failed\n", seed);
      break;
    }
  }
  CHECK(figures.events > 1000 && figures.failed_events > 20 && figures.abandoned_events > 20);
  CHECK(figures.shrinks > 100 && figures.grows > 100);
}

}  // namespace
}  // namespace remoe

int main(int argc, char** argv) {
  return remoe::testing::FuzzMain(argc, argv, remoe::RunFor);
}

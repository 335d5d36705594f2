#include "runtime/expert_store.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace remoe {

Result<std::unique_ptr<ExpertStore>> ExpertStore::Make(const ModelFile* model,
                                                       const std::vector<ExpertLayer>* layers,
                                                       const SlotLayout& layout, Reader* reader,
                                                       Transform transform,
                                                       const StoreOptions& options) {
  Geometry geometry;
  geometry.n_layers = static_cast<int>(layers->size());
  for (const ExpertLayer& layer : *layers) {
    geometry.n_experts = std::max(geometry.n_experts, layer.n_experts);
  }
  geometry.n_slots = options.n_slots - options.n_reserved;
  Result<std::unique_ptr<Policy>> policy = MakePolicy(options.policy, geometry, options.profile);
  if (!policy.ok()) return policy.status();

  StorageParts parts;
  parts.model = model;
  parts.layers = layers;
  parts.reader = reader;
  parts.transform = std::move(transform);
  parts.staging_buffers = options.staging_buffers;
  Result<std::unique_ptr<Slab>> slab = MakeSlab(layout.slot_bytes(), options, &parts.n_slots);
  if (!slab.ok()) return slab.status();
  parts.slab = std::move(slab.value());
  if (options.memory != nullptr) {
    parts.staging =
        Staging::Over(options.memory->staging(), options.staging_buffers, layout.staged_bytes());
    parts.transform = [memory = options.memory, layers, layout, first = parts.slab->data()](
                          int layer, int matrix, const uint8_t* bytes, uint8_t* dest) {
      memory->Write(dest - first, bytes, (*layers)[layer].matrices[matrix].expert_bytes,
                    layout.at(layer, matrix).room_bytes);
    };
  } else {
    parts.populator = std::make_unique<Populator>(parts.slab->data(), parts.slab->held_bytes());
    Result<std::unique_ptr<Staging>> staging =
        Staging::Make(options.staging_buffers, layout.staged_bytes());
    if (!staging.ok()) return staging.status();
    parts.staging = std::move(staging.value());
  }

  auto cache = std::make_unique<Cache>(geometry, std::move(policy.value()), options.n_reserved);
  // Kernels of a device may sum otherwise where a layer's experts lie in another order.
  if (options.memory != nullptr && options.n_slots >= geometry.total()) cache->PreferOwnSlots();
  std::unique_ptr<ExpertStore> store(
      new ExpertStore(layers, layout, std::move(cache), std::move(parts),
                      std::min(options.event_slots, options.n_slots)));
  if (options.coarse.layers != nullptr) {
    REMOE_RETURN_IF_ERROR(store->AddCoarse(options.coarse));
  }
  return store;
}

// Asked before storage, which takes whatever is left.
Status ExpertStore::AddCoarse(const CoarseParts& parts) {
  Result<std::unique_ptr<CoarseSource>> coarse =
      CoarseSource::Make(parts, cache_->geometry(), storage_.get(), &tallies_);
  if (!coarse.ok()) return coarse.status();
  coarse_ = std::move(coarse.value());
  sources_.insert(sources_.end() - 1, coarse_.get());
  return Status::Ok();
}

// Where the system gives no addresses for slots that are not in use, the store will not grow.
Result<std::unique_ptr<Slab>> ExpertStore::MakeSlab(uint64_t slot_bytes,
                                                    const StoreOptions& options, int* most_slots) {
  const uint64_t held = slot_bytes * static_cast<uint64_t>(options.n_slots);
  if (options.memory != nullptr) {
    *most_slots = options.n_slots;
    return Slab::Addresses(held);
  }
  *most_slots = std::max(options.n_slots, options.most_slots);
  const uint64_t most = slot_bytes * static_cast<uint64_t>(*most_slots);
  Result<std::unique_ptr<Slab>> slab = Slab::Make(most, held, options.lock);
  if (slab.ok() || most == held) return slab;
  *most_slots = options.n_slots;
  return Slab::Make(held, held, options.lock);
}

ExpertStore::ExpertStore(const std::vector<ExpertLayer>* layers, const SlotLayout& layout,
                         std::unique_ptr<Cache> cache, StorageParts parts, int event_slots)
    : layers_(layers),
      reader_(parts.reader),
      policy_name_(cache->policy().name()),
      most_slots_(parts.n_slots),
      n_slots_(cache->total_slots()),
      layer_tallies_(layers->size()),
      cache_(std::move(cache)),
      storage_(std::make_unique<StorageSource>(layout, std::move(parts), &tallies_)),
      sources_({&residents_, storage_.get()}),
      prefetcher_(std::make_unique<Prefetcher>(cache_.get(), storage_.get(), layers, event_slots,
                                               &tallies_)),
      uses_(cache_->geometry().total()),
      choices_(cache_->geometry().total()) {}

ExpertStore::~ExpertStore() {
  if (open_) (void)EndEvent();
  prefetcher_->Cancel();
}

void ExpertStore::CountUses(const Event& event) {
  const ExpertId first = static_cast<ExpertId>(event.layer) * cache_->geometry().n_experts;
  for (int i = 0; i < event.n; i++) uses_[first + event.experts[i]]++;
  // Where it is not known which token took what, every expert counts as one choice.
  const uint16_t* chosen = event.ids != nullptr ? event.ids : event.experts;
  const int n = event.ids != nullptr ? event.n_tokens * event.top_k : event.n;
  for (int i = 0; i < n; i++) choices_[first + chosen[i]]++;
}

Status ExpertStore::BeginEvent(const Event& event) {
  if (open_) return Status(Code::kInvalidArgument, "an event of the expert cache is open already");
  prefetcher_->MakeRoom(event);
  cache_->ShareReserved(share_reserved_);
  REMOE_RETURN_IF_ERROR(cache_->Begin(event, &placements_));
  if (!event.continued) CountUses(event);
  open_ = true;
  layer_ = event.layer;

  Demand demand;
  demand.layer = event.layer;
  demand.n_tokens = event.n_tokens;
  demand.experts = &placements_;
  demand.arrivals = &arrivals_;
  demand.ticket = arrivals_.ticket();
  taken_.assign(placements_.size(), false);
  for (ExpertSource* source : sources_) source->Begin(demand, &taken_);
  prefetcher_->ForgetTaken();

  const uint64_t hits = std::count_if(placements_.begin(), placements_.end(),
                                      [](const Placement& each) { return each.hit; });
  const uint64_t misses = placements_.size() - hits;
  tallies_.hits += hits;
  tallies_.misses += misses;
  layer_tallies_[event.layer].hits += hits;
  layer_tallies_[event.layer].misses += misses;
  tallies_.events++;
  tallies_.evictions = cache_->counts().evictions;
  return Status::Ok();
}

void ExpertStore::Note(const Event& event) {
  if (open_ || event.continued) return;
  cache_->policy().OnEvent(event);
  CountUses(event);
}

void ExpertStore::Scores(std::vector<float>* scores) const {
  if (cache_->policy().Scores(scores)) return;
  scores->resize(uses_.size());
  uint64_t most = 1;
  for (const uint32_t uses : uses_) most = std::max<uint64_t>(most, uses);
  for (size_t id = 0; id < uses_.size(); id++) {
    const double share = (uses_[id] + 0.5) / (static_cast<double>(most) + 1);
    (*scores)[id] = static_cast<float>(std::log(share / (1 - share)));
  }
}

void ExpertStore::Wait(bool all_but_down, std::vector<Arrival>* arrived) {
  using Clock = std::chrono::steady_clock;
  const size_t before = arrived->size();
  const auto start = Clock::now();
  if (arrivals_.Wait(all_but_down, arrived)) {
    tallies_.stall_ns +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  }
  for (size_t i = before; i < arrived->size(); i++) {
    tallies_.partial_misses += (*arrived)[i].kind == Arrival::Kind::kAllButDown ? 1 : 0;
  }
}

Status ExpertStore::EndEvent() {
  if (!open_) return Status::Ok();
  Status failure;
  for (auto source = sources_.rbegin(); source != sources_.rend(); ++source) {
    (*source)->End();
    for (const uint16_t expert : (*source)->failed()) cache_->Failed(expert);
    if (failure.ok()) failure = (*source)->failure();
  }
  cache_->End();
  open_ = false;
  prefetcher_->ReserveMore();
  return failure;
}

void ExpertStore::Resize(int n_slots, int n_reserved, int event_slots) {
  prefetcher_->Quiesce();
  const bool grows = n_slots > n_slots_;
  if (grows) storage_->Resize(n_slots);
  cache_->Resize(n_slots - n_reserved, n_reserved, &moves_);
  for (const SlotMove& move : moves_) storage_->Move(move.from, move.to);
  if (!grows) storage_->Resize(n_slots);
  prefetcher_->set_event_slots(std::min(event_slots, n_slots));
  tallies_.evictions = cache_->counts().evictions;
  n_slots_ = n_slots;
}

int ExpertStore::Prefetch(const PrefetchPlan& plan) {
  if (open_ && plan.priority == PrefetchPriority::kStart) return 0;
  return prefetcher_->Start(plan, layer_);
}

void ExpertStore::FinishStart() {
  if (!open_) prefetcher_->FinishStart();
}

StoreCounts ExpertStore::counts() const {
  StoreCounts counts = tallies_.Read();
  counts.device_bytes = reader_->counts().device_bytes;
  return counts;
}

std::vector<LayerCounts> ExpertStore::layer_counts() const {
  std::vector<LayerCounts> counts(layer_tallies_.size());
  for (size_t i = 0; i < counts.size(); i++) {
    counts[i].hits = layer_tallies_[i].hits;
    counts[i].misses = layer_tallies_[i].misses;
  }
  return counts;
}

}  // namespace remoe

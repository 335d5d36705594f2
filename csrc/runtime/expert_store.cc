#include "runtime/expert_store.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"

namespace remoe {

namespace {

using Clock = std::chrono::steady_clock;

// A read's tag names the slot it fills and the matrix within the expert.
constexpr int kMatrixBits = 3;
uint64_t MakeTag(SlotId slot, int matrix) {
  return static_cast<uint64_t>(slot) << kMatrixBits | matrix;
}
SlotId TagSlot(uint64_t tag) {
  return static_cast<SlotId>(tag >> kMatrixBits);
}
int TagMatrix(uint64_t tag) {
  return static_cast<int>(tag & ((1u << kMatrixBits) - 1));
}

uint64_t Nanoseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
}

}  // namespace

Result<std::unique_ptr<ExpertStore>> ExpertStore::Make(
    const ModelFile* model, const std::vector<ExpertLayer>* layers, const SlotLayout& layout,
    std::unique_ptr<Reader> reader, Transform transform, const StoreOptions& options) {
  Geometry geometry;
  geometry.n_layers = static_cast<int>(layers->size());
  for (const ExpertLayer& layer : *layers) {
    geometry.n_experts = std::max(geometry.n_experts, layer.n_experts);
  }
  geometry.n_slots = options.n_slots - options.n_spare;
  Result<std::unique_ptr<Policy>> policy = MakePolicy(options.policy, geometry, options.profile);
  if (!policy.ok()) return policy.status();

  std::unique_ptr<ExpertStore> store(new ExpertStore(layout));
  store->model_ = model;
  store->layers_ = layers;
  store->layer_tallies_ = std::vector<LayerTally>(layers->size());
  store->policy_name_ = policy.value()->name();
  store->cache_ = std::make_unique<Cache>(geometry, std::move(policy.value()), options.n_spare);
  store->loads_.resize(options.n_slots);
  store->planned_.resize(geometry.total());
  store->event_slots_ = std::min(options.event_slots, options.n_slots);
  store->staging_buffers_ = options.staging_buffers;
  Result<std::unique_ptr<Slab>> slab =
      Slab::Make(layout.slot_bytes() * static_cast<uint64_t>(options.n_slots), options.lock);
  if (!slab.ok()) return slab.status();
  store->slab_ = std::move(slab.value());
  store->populator_ = std::make_unique<Populator>(store->slab_->data(), store->slab_->n_bytes());
  Result<std::unique_ptr<Staging>> staging =
      Staging::Make(options.staging_buffers, layout.staged_bytes());
  if (!staging.ok()) return staging.status();
  store->staging_ = std::move(staging.value());
  store->uses_.assign(geometry.total(), 0);
  store->choices_.assign(geometry.total(), 0);
  store->transform_ = std::move(transform);
  store->reader_ = std::move(reader);
  store->idle_since_ = Clock::now();
  return store;
}

ExpertStore::~ExpertStore() {
  if (open_) (void)EndEvent();
  EndWarming();
  CancelAhead();
  reader_->Drain();
}

Status ExpertStore::BeginEvent(const Event& event) {
  EndWarming();
  ReapAhead();
  cache_->LendSpare(lend_spare_);
  MakeRoomFor(event);
  REMOE_RETURN_IF_ERROR(cache_->Begin(event, &placements_));
  if (!event.continued) {
    const ExpertId first = static_cast<ExpertId>(event.layer) * cache_->geometry().n_experts;
    for (int i = 0; i < event.n; i++) uses_[first + event.experts[i]]++;
    // Where it is not known which token took what, every expert counts as one choice.
    const uint16_t* chosen = event.ids != nullptr ? event.ids : event.experts;
    const int n = event.ids != nullptr ? event.n_tokens * event.top_k : event.n;
    for (int i = 0; i < n; i++) choices_[first + chosen[i]]++;
  }
  open_ = true;
  layer_ = event.layer;
  began_ = Clock::now();
  missing_ = handed_out_ = 0;
  const int n = static_cast<int>(placements_.size());
  const uint32_t all = (1u << (*layers_)[event.layer].matrices.size()) - 1;
  last_matrix_ = (all + 1) / 2;
  ready_.assign(n, true);
  std::vector<Read> reads;
  std::vector<uint64_t> promoted;
  uint64_t hits = 0, ahead_bytes = 0;
  int ahead_misses = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_window_ns_ = unfinished_ == 0 ? Nanoseconds(began_ - idle_since_) : 0;
    arrived_.clear();
    partly_.clear();
    staged_.clear();
    failure_ = Status::Ok();
    event_read_bytes_ = event_read_ns_ = 0;
    for (int i = 0; i < n; i++) {
      if (placements_[i].hit) {
        hits++;
        continue;
      }
      const SlotId slot = placements_[i].slot;
      Load& load = loads_[slot];
      if (placements_[i].ahead) {
        ahead_misses += load.bytes > 0 || load.in_flight != 0 ? 1 : 0;
        ahead_bytes += load.bytes;
        ahead_.erase(std::remove(ahead_.begin(), ahead_.end(), slot), ahead_.end());
        for (int m = 0; load.in_flight >> m != 0; m++) {
          if (load.in_flight >> m & 1) promoted.push_back(MakeTag(slot, m));
        }
      } else {
        load = Load();
        load.layer = event.layer;
        load.expert = placements_[i].expert;
        load.waiting = all;
      }
      load.state = Load::State::kDemand;
      load.given_up = load.failed = load.partly = false;
      load.index = i;
      if (load.complete()) continue;
      ready_[i] = false;
      missing_++;
      event_read_bytes_ += (*layers_)[event.layer].expert_bytes() - load.bytes;
      SubmitDemandLocked(slot, load.waiting, &reads);
      PartlyLocked(&load);
    }
    unfinished_ = missing_;
    if (missing_ == 0) idle_since_ = began_;
    TakeStagedLocked(&reads);
  }
  ahead_slots_.erase(
      std::remove_if(ahead_slots_.begin(), ahead_slots_.end(),
                     [this](SlotId slot) { return loads_[slot].state != Load::State::kAhead; }),
      ahead_slots_.end());
  hits_ += hits;
  misses_ += n - hits;
  layer_tallies_[event.layer].hits += hits;
  layer_tallies_[event.layer].misses += n - hits;
  ahead_misses_ += ahead_misses;
  bytes_read_ += ahead_bytes;
  ahead_useful_bytes_ += ahead_bytes;
  events_++;
  evictions_ = cache_->counts().evictions;
  for (const uint64_t tag : promoted) reader_->Promote(tag);
  Submit(reads);
  return Status::Ok();
}

Read ExpertStore::MakeRead(SlotId slot, int m, bool background) const {
  const Load& load = loads_[slot];
  const ExpertMatrix& matrix = (*layers_)[load.layer].matrices[m];
  Read read;
  read.file = matrix.shard;
  read.offset = matrix.offset + load.expert * matrix.expert_bytes;
  read.n_bytes = matrix.expert_bytes;
  read.tag = MakeTag(slot, m);
  read.background = background;
  populator_->Used((static_cast<uint64_t>(slot) + 1) * layout_.slot_bytes());
  if (layout_.at(load.layer, m).in_place) read.dest = this->matrix(slot, load.layer, m);
  return read;
}

void ExpertStore::Submit(const std::vector<Read>& reads) {
  if (reads.empty()) return;
  reader_->Submit(reads.data(), static_cast<int>(reads.size()),
                  [this](const Read& read, const Status& status) { OnRead(read, status); });
}

// Appends the reads that can land in their slot; the others wait for a staging buffer.
void ExpertStore::SubmitDemandLocked(SlotId slot, uint32_t matrices, std::vector<Read>* reads) {
  Load& load = loads_[slot];
  for (int m = 0; matrices >> m != 0; m++) {
    if ((matrices >> m & 1) == 0) continue;
    if (layout_.at(load.layer, m).in_place) {
      load.waiting &= ~(1u << m);
      load.in_flight |= 1u << m;
      reads->push_back(MakeRead(slot, m, false));
    } else {
      staged_.push_back({slot, m});
    }
  }
}

// Appends as many of the event's staged reads as there are buffers.
void ExpertStore::TakeStagedLocked(std::vector<Read>* reads) {
  while (!staged_.empty()) {
    uint8_t* buffer = staging_->TryTake();
    if (buffer == nullptr) return;
    const auto [slot, m] = staged_.front();
    staged_.pop_front();
    loads_[slot].waiting &= ~(1u << m);
    loads_[slot].in_flight |= 1u << m;
    Read read = MakeRead(slot, m, false);
    read.dest = buffer + read.offset % kPage;
    reads->push_back(read);
  }
}

// Runs on an I/O thread, or, for reads that are cancelled, on the thread that cancels them.
void ExpertStore::OnRead(const Read& read, const Status& status) {
  const SlotId slot = TagSlot(read.tag);
  const int m = TagMatrix(read.tag);
  const uint32_t bit = 1u << m;
  Load& load = loads_[slot];
  const int layer = load.layer;  // of a slot that is being filled, it stays
  if (!layout_.at(layer, m).in_place) {
    if (status.ok()) {
      uint8_t* dest = matrix(slot, layer, m);
      if (transform_) {
        transform_(layer, m, read.dest, dest);
      } else {
        std::memcpy(dest, read.dest, read.n_bytes);
      }
    }
    staging_->Give(read.dest - read.offset % kPage);
  }
  std::vector<Read> next;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    load.in_flight &= ~bit;
    if (read.background) {
      ahead_in_flight_--;
      ahead_in_flight_bytes_ -= read.n_bytes;
      ahead_staged_ -= layout_.at(layer, m).in_place ? 0 : 1;
    }
    const bool demand = load.state == Load::State::kDemand;
    if (status.ok()) {
      load.bytes += read.n_bytes;
      if (demand) bytes_read_ += read.n_bytes;
      if (demand && read.background) ahead_useful_bytes_ += read.n_bytes;
    } else {
      load.waiting |= bit;
      if (!demand) {
        load.failed |= status.code() != Code::kCancelled;
      } else if (read.background) {
        // It went wrong on behalf of nobody; now somebody wants it.
        SubmitDemandLocked(slot, bit, &next);
      } else {
        load.waiting &= ~bit;
        load.failed = true;
        if (failure_.ok()) failure_ = Describe(read, load, status);
        changed_.notify_one();
      }
    }
    if (demand) PartlyLocked(&load);
    if (demand && load.complete()) FinishLocked(load);
    TakeStagedLocked(&next);
    TakeAheadLocked(&next);
    // Notified under the lock: the last notification may be what lets the store be destroyed.
    if (!demand && load.in_flight == 0) changed_.notify_one();
  }
  Submit(next);
}

// Once for an event's expert, also where its down has to be read again.
void ExpertStore::PartlyLocked(Load* load) {
  if (load->partly || load->failed || !load->lacks_only(last_matrix_)) return;
  load->partly = true;
  partly_.push_back(load->index);
  if (partly_awaited_) changed_.notify_one();
}

void ExpertStore::FinishLocked(const Load& load) {
  partly_.erase(std::remove(partly_.begin(), partly_.end(), load.index), partly_.end());
  unfinished_--;
  if (!load.failed) arrived_.push_back(load.index);
  if (unfinished_ == 0) {
    idle_since_ = Clock::now();
    event_read_ns_ = Nanoseconds(idle_since_ - began_);
  }
  changed_.notify_one();
}

Status ExpertStore::Describe(const Read& read, const Load& load, const Status& status) const {
  const ExpertLayer& layer = (*layers_)[load.layer];
  return Status(status.code(),
                Format("layer %d, expert %d, %s, at offset %llu of %s: %s", layer.block,
                       load.expert, MatrixName(layer.matrices[TagMatrix(read.tag)].matrix),
                       static_cast<unsigned long long>(read.offset),
                       model_->paths()[read.file].c_str(), status.message().c_str()));
}

Status ExpertStore::WaitArrived(std::vector<int>* arrived, std::vector<int>* partly) {
  const auto start = Clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  partly_awaited_ = partly != nullptr;
  changed_.wait(lock, [this] {
    return !arrived_.empty() || !failure_.ok() || (partly_awaited_ && !partly_.empty());
  });
  stall_ns_ += Nanoseconds(Clock::now() - start);
  if (!failure_.ok()) return failure_;
  if (arrived_.empty()) {
    partly->insert(partly->end(), partly_.begin(), partly_.end());
    begun_misses_ += partly_.size();
    partly_.clear();
    return Status::Ok();
  }
  arrived->insert(arrived->end(), arrived_.begin(), arrived_.end());
  handed_out_ += static_cast<int>(arrived_.size());
  arrived_.clear();
  return Status::Ok();
}

Status ExpertStore::EndEvent() {
  Status failure;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return unfinished_ == 0; });
    failure = failure_;
    last_read_bytes_ = failure.ok() ? event_read_bytes_ : 0;
    last_read_ns_ = event_read_ns_;
    read_ns_ += event_read_ns_;
    for (const Placement& placement : placements_) {
      if (placement.hit) continue;
      if (loads_[placement.slot].failed) cache_->Failed(placement.expert);
      loads_[placement.slot].state = Load::State::kNone;
    }
  }
  cache_->End();
  open_ = false;
  ReserveAhead();
  return failure;
}

StoreCounts ExpertStore::counts() const {
  StoreCounts counts;
  counts.hits = hits_;
  counts.misses = misses_;
  counts.bytes_read = bytes_read_;
  counts.device_bytes = reader_->counts().device_bytes;
  counts.stall_ns = stall_ns_;
  counts.read_ns = read_ns_;
  counts.events = events_;
  counts.evictions = evictions_;
  counts.warm_experts = warm_experts_;
  counts.warm_bytes = warm_bytes_;
  counts.begun_misses = begun_misses_;
  counts.ahead_misses = ahead_misses_;
  counts.ahead_useful_bytes = ahead_useful_bytes_;
  counts.ahead_wasted_bytes = ahead_wasted_bytes_;
  counts.ahead_given_up = ahead_given_up_;
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

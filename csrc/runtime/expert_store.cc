#include "runtime/expert_store.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/format.h"

namespace remoe {

namespace {

// A read's tag names the placement it serves and the matrix within the expert.
constexpr int kMatrixBits = 3;
uint64_t MakeTag(int index, int matrix) {
  return static_cast<uint64_t>(index) << kMatrixBits | matrix;
}
int TagIndex(uint64_t tag) {
  return static_cast<int>(tag >> kMatrixBits);
}
int TagMatrix(uint64_t tag) {
  return static_cast<int>(tag & ((1u << kMatrixBits) - 1));
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
  geometry.n_slots = options.n_slots;
  Result<std::unique_ptr<Policy>> policy = MakePolicy(options.policy, geometry, options.profile);
  if (!policy.ok()) return policy.status();

  std::unique_ptr<ExpertStore> store(new ExpertStore(layout));
  store->model_ = model;
  store->layers_ = layers;
  store->layer_tallies_ = std::vector<LayerTally>(layers->size());
  store->policy_name_ = policy.value()->name();
  store->cache_ = std::make_unique<Cache>(geometry, std::move(policy.value()));
  Result<std::unique_ptr<Slab>> slab =
      Slab::Make(layout.slot_bytes() * static_cast<uint64_t>(options.n_slots), options.lock);
  if (!slab.ok()) return slab.status();
  store->slab_ = std::move(slab.value());
  Result<std::unique_ptr<Staging>> staging =
      Staging::Make(options.staging_buffers, layout.staged_bytes());
  if (!staging.ok()) return staging.status();
  store->staging_ = std::move(staging.value());
  store->uses_.assign(geometry.total(), 0);
  store->transform_ = std::move(transform);
  store->reader_ = std::move(reader);
  return store;
}

ExpertStore::~ExpertStore() {
  if (open_) (void)EndEvent();
  EndWarming();
  reader_->Drain();
}

Status ExpertStore::BeginEvent(const Event& event) {
  EndWarming();
  REMOE_RETURN_IF_ERROR(cache_->Begin(event, &placements_));
  if (!event.continued) {
    const ExpertId first = static_cast<ExpertId>(event.layer) * cache_->geometry().n_experts;
    for (int i = 0; i < event.n; i++) uses_[first + event.experts[i]]++;
  }
  open_ = true;
  layer_ = event.layer;
  missing_ = handed_out_ = 0;
  for (const Placement& placement : placements_) missing_ += placement.hit ? 0 : 1;
  const int n = static_cast<int>(placements_.size());
  hits_ += n - missing_;
  misses_ += missing_;
  layer_tallies_[event.layer].hits += n - missing_;
  layer_tallies_[event.layer].misses += missing_;
  events_++;
  evictions_ = cache_->counts().evictions;

  const ExpertLayer& layer = (*layers_)[event.layer];
  const int n_matrices = static_cast<int>(layer.matrices.size());
  in_place_.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    pending_.assign(n, Pending());
    arrived_.clear();
    staged_.clear();
    next_staged_ = 0;
    unfinished_ = missing_;
    failure_ = Status::Ok();
    if (missing_ == 0) return Status::Ok();
    for (int i = 0; i < n; i++) {
      if (placements_[i].hit) continue;
      pending_[i].remaining = n_matrices;
      for (int m = 0; m < n_matrices; m++) {
        const ExpertMatrix& matrix = layer.matrices[m];
        Read read;
        read.file = matrix.shard;
        read.offset = matrix.offset + placements_[i].expert * matrix.expert_bytes;
        read.n_bytes = matrix.expert_bytes;
        read.tag = MakeTag(i, m);
        if (layout_.at(event.layer, m).in_place) {
          read.dest = this->matrix(placements_[i].slot, event.layer, m);
          in_place_.push_back(read);
        } else {
          staged_.push_back(read);
        }
      }
    }
  }
  const ReadDone done = [this](const Read& read, const Status& status) { OnRead(read, status); };
  if (!in_place_.empty()) {
    reader_->Submit(in_place_.data(), static_cast<int>(in_place_.size()), done);
  }
  SubmitStaged();
  return Status::Ok();
}

// Submits as many of the event's staged reads as there are buffers; called again as buffers come
// free.
void ExpertStore::SubmitStaged() {
  std::vector<Read> batch;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    while (next_staged_ < staged_.size()) {
      uint8_t* buffer = staging_->TryTake();
      if (buffer == nullptr) break;
      Read read = staged_[next_staged_++];
      read.dest = buffer + read.offset % kPage;
      batch.push_back(read);
    }
  }
  if (batch.empty()) return;
  reader_->Submit(batch.data(), static_cast<int>(batch.size()),
                  [this](const Read& read, const Status& status) { OnRead(read, status); });
}

// Runs on an I/O thread.
void ExpertStore::OnRead(const Read& read, const Status& status) {
  const int index = TagIndex(read.tag);
  const int m = TagMatrix(read.tag);
  if (!layout_.at(layer_, m).in_place) {
    if (status.ok()) {
      uint8_t* dest = matrix(placements_[index].slot, layer_, m);
      if (transform_) {
        transform_(layer_, m, read.dest, dest);
      } else {
        std::memcpy(dest, read.dest, read.n_bytes);
      }
    }
    staging_->Give(read.dest - read.offset % kPage);
    SubmitStaged();
  }
  if (status.ok()) {
    bytes_read_ += read.n_bytes;
    Finish(index, status);
    return;
  }
  const ExpertLayer& layer = (*layers_)[layer_];
  Finish(index, Status(status.code(),
                       Format("layer %d, expert %d, %s, at offset %llu of %s: %s", layer.block,
                              placements_[index].expert, MatrixName(layer.matrices[m].matrix),
                              static_cast<unsigned long long>(read.offset),
                              model_->paths()[read.file].c_str(), status.message().c_str())));
}

void ExpertStore::Finish(int index, const Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Pending& pending = pending_[index];
    if (!status.ok()) {
      pending.failed = true;
      if (failure_.ok()) failure_ = status;
    }
    if (--pending.remaining > 0 && failure_.ok()) return;
    if (pending.remaining == 0) {
      unfinished_--;
      if (!pending.failed) arrived_.push_back(index);
    }
    // Notified under the lock: the last notification may be what lets the store be destroyed.
    changed_.notify_one();
  }
}

Status ExpertStore::WaitArrived(std::vector<int>* arrived) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !arrived_.empty() || !failure_.ok(); });
  stall_ns_ +=
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start)
          .count();
  if (!failure_.ok()) return failure_;
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
  }
  for (size_t i = 0; i < placements_.size(); i++) {
    if (!placements_[i].hit && pending_[i].failed) cache_->Failed(placements_[i].expert);
  }
  cache_->End();
  open_ = false;
  return failure;
}

StoreCounts ExpertStore::counts() const {
  StoreCounts counts;
  counts.hits = hits_;
  counts.misses = misses_;
  counts.bytes_read = bytes_read_;
  counts.device_bytes = reader_->counts().device_bytes;
  counts.stall_ns = stall_ns_;
  counts.events = events_;
  counts.evictions = evictions_;
  counts.warm_experts = warm_experts_;
  counts.warm_bytes = warm_bytes_;
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

#include "runtime/coarse_source.h"

#include <algorithm>
#include <cstring>

#include "runtime/read_failure.h"
#include "runtime/storage_source.h"

namespace remoe {

namespace {

using Clock = std::chrono::steady_clock;

// A read's tag names the load and the matrix within the expert.
constexpr int kMatrixBits = 3;

}  // namespace

Result<std::unique_ptr<CoarseSource>> CoarseSource::Make(const CoarseParts& parts,
                                                         const Geometry& geometry,
                                                         const StorageSource* slots,
                                                         StoreTallies* tallies) {
  Result<std::unique_ptr<Staging>> staging =
      Staging::Make(kStagingBuffers, parts.layout->staged_bytes());
  if (!staging.ok()) return staging.status();
  return std::unique_ptr<CoarseSource>(
      new CoarseSource(parts, geometry, slots, tallies, std::move(staging.value())));
}

CoarseSource::CoarseSource(const CoarseParts& parts, const Geometry& geometry,
                           const StorageSource* slots, StoreTallies* tallies,
                           std::unique_ptr<Staging> staging)
    : parts_(parts),
      slots_(slots),
      tallies_(tallies),
      staging_(std::move(staging)),
      n_experts_(geometry.n_experts),
      coarse_(geometry.total()) {}

CoarseSource::~CoarseSource() {
  parts_.reader->Drain();
}

uint8_t* CoarseSource::At(SlotId slot, int matrix) const {
  return slots_->at(slot) + parts_.layout->at(layer_, matrix).offset;
}

void CoarseSource::Begin(const Demand& demand, std::vector<bool>* taken) {
  const int n_matrices = static_cast<int>((*parts_.layers)[demand.layer].matrices.size());
  std::vector<Read> reads;
  failed_.clear();
  loads_.clear();
  layer_ = demand.layer;
  for (size_t i = 0; i < demand.experts->size(); i++) {
    const Placement& placement = (*demand.experts)[i];
    if (placement.hit || (*taken)[i]) continue;
    const bool wished =
        std::find(wished_.begin(), wished_.end(), placement.expert) != wished_.end();
    const bool coarse = wished && !placement.prefetched;
    coarse_[IdOf(layer_, placement.expert)] = coarse;
    if (!coarse) continue;
    (*taken)[i] = true;
    Load load;
    load.expert = placement.expert;
    load.slot = placement.slot;
    load.left = (1u << n_matrices) - 1;
    loads_.push_back(load);
  }
  wished_.clear();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = Status::Ok();
    arrivals_ = demand.arrivals;
    ticket_ = demand.ticket;
    began_ = ended_ = Clock::now();
    unfinished_ = static_cast<int>(loads_.size());
    for (int l = 0; l < unfinished_; l++) {
      slots_->Touch(loads_[l].slot);
      for (int m = 0; m < n_matrices; m++) {
        if (parts_.layout->at(layer_, m).in_place) {
          reads.push_back(MakeRead(l, m, nullptr));
        } else {
          staged_.emplace_back(l, m);
        }
      }
    }
    TakeStagedLocked(&reads);
  }
  Submit(reads);
}

void CoarseSource::End() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return unfinished_ == 0; });
  for (const Load& load : loads_) {
    if (load.failed) failed_.push_back(load.expert);
  }
  // Storage has counted its own reads, which began at the same moment.
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(ended_ - began_).count();
  if (!loads_.empty()) {
    const uint64_t counted = slots_->last_read_ns();
    tallies_->read_ns += std::max<uint64_t>(ns, counted) - counted;
  }
  loads_.clear();
}

Read CoarseSource::MakeRead(int load, int m, uint8_t* buffer) const {
  const ExpertMatrix& matrix = (*parts_.layers)[layer_].matrices[m];
  Read read;
  read.file = parts_.first_shard + matrix.shard;
  read.offset = matrix.offset + loads_[load].expert * matrix.expert_bytes;
  read.n_bytes = matrix.expert_bytes;
  read.tag = static_cast<uint64_t>(load) << kMatrixBits | static_cast<uint64_t>(m);
  read.dest = buffer != nullptr ? buffer + read.offset % kPage : At(loads_[load].slot, m);
  return read;
}

void CoarseSource::Submit(const std::vector<Read>& reads) {
  if (reads.empty()) return;
  parts_.reader->Submit(reads.data(), static_cast<int>(reads.size()),
                        [this](const Read& read, const Status& status) { OnRead(read, status); });
}

void CoarseSource::TakeStagedLocked(std::vector<Read>* reads) {
  while (!staged_.empty()) {
    uint8_t* buffer = staging_->TryTake();
    if (buffer == nullptr) return;
    const auto [load, m] = staged_.front();
    staged_.pop_front();
    reads->push_back(MakeRead(load, m, buffer));
  }
}

// Brings what passed through staging to its slot.
void CoarseSource::Fill(const Read& read, const Status& status, int load, int m) {
  if (parts_.layout->at(layer_, m).in_place) return;
  if (status.ok()) std::memcpy(At(loads_[load].slot, m), read.dest, read.n_bytes);
  staging_->Give(read.dest - read.offset % kPage);
}

// Runs on an I/O thread.
void CoarseSource::OnRead(const Read& read, const Status& status) {
  const int l = static_cast<int>(read.tag >> kMatrixBits);
  const int m = static_cast<int>(read.tag & ((1u << kMatrixBits) - 1));
  const uint32_t down = 1u << ((*parts_.layers)[layer_].matrices.size() - 1);
  Fill(read, status, l, m);
  std::vector<Read> next;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Load& load = loads_[l];
    load.left &= ~(1u << m);
    if (status.ok()) {
      tallies_->bytes_read += read.n_bytes;
      tallies_->coarse_bytes += read.n_bytes;
    } else if (!load.failed) {
      load.failed = true;
      const Status failure =
          ReadFailure((*parts_.layers)[layer_], load.expert, m,
                      parts_.file->paths()[read.file - parts_.first_shard], read.offset, status);
      if (failure_.ok()) failure_ = failure;
      arrivals_->Post(ticket_, Arrival::Kind::kFailed, load.expert, failure);
    }
    if (load.left == down && !load.announced && !load.failed) {
      load.announced = true;
      arrivals_->Post(ticket_, Arrival::Kind::kAllButDown, load.expert);
    }
    TakeStagedLocked(&next);
    if (load.left == 0) {
      if (!load.failed) arrivals_->Post(ticket_, Arrival::Kind::kWeights, load.expert);
      if (--unfinished_ == 0) {
        ended_ = Clock::now();
        changed_.notify_all();
      }
    }
  }
  Submit(next);
}

}  // namespace remoe

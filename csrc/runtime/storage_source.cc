#include "runtime/storage_source.h"

#include <algorithm>
#include <cstring>

#include "runtime/read_failure.h"

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

StorageSource::StorageSource(const SlotLayout& layout, StorageParts parts, StoreTallies* tallies)
    : layout_(layout),
      parts_(std::move(parts)),
      tallies_(tallies),
      slots_bytes_(parts_.slab->held_bytes()),
      loads_(parts_.n_slots) {
  idle_since_ = Clock::now();
}

StorageSource::~StorageSource() {
  StopPrefetch();
  CancelReads();
  parts_.reader->Drain();
}

void StorageSource::Resize(int n_slots) {
  const uint64_t n_bytes = layout_.slot_bytes() * static_cast<uint64_t>(n_slots);
  if (parts_.populator != nullptr) parts_.populator->Limit(n_bytes);
  parts_.slab->Hold(n_bytes);
  slots_bytes_ = n_bytes;
}

void StorageSource::Move(SlotId from, SlotId to) {
  const uint64_t size = layout_.slot_bytes();
  parts_.populator->Used((static_cast<uint64_t>(to) + 1) * size);
  std::memcpy(parts_.slab->data() + to * size, parts_.slab->data() + from * size, size);
}

void StorageSource::Begin(const Demand& demand, std::vector<bool>* taken) {
  const int layer = demand.layer;
  const ExpertLayer& its_layer = (*parts_.layers)[layer];
  const uint32_t all = (1u << its_layer.matrices.size()) - 1;
  std::vector<Read> reads;
  std::vector<uint64_t> promoted;
  uint64_t prefetched_bytes = 0;
  int prefetched_misses = 0;
  event_slots_.clear();
  there_.clear();
  failed_.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    began_ = Clock::now();
    idle_window_ns_ = Nanoseconds(began_ - idle_since_);
    arrivals_ = demand.arrivals;
    ticket_ = demand.ticket;
    last_matrix_ = (all + 1) / 2;
    failure_ = Status::Ok();
    event_read_bytes_ = event_read_ns_ = 0;
    unfinished_ = 0;
    for (size_t i = 0; i < demand.experts->size(); i++) {
      const Placement& placement = (*demand.experts)[i];
      if (placement.hit || (*taken)[i]) continue;
      (*taken)[i] = true;
      const SlotId slot = placement.slot;
      event_slots_.push_back(slot);
      SlotLoad& load = loads_[slot];
      if (placement.prefetched) {
        prefetched_misses += load.untouched() ? 0 : 1;
        prefetched_bytes += load.bytes;
        queue_.erase(std::remove(queue_.begin(), queue_.end(), slot), queue_.end());
        for (int m = 0; load.in_flight >> m != 0; m++) {
          if (load.in_flight >> m & 1) promoted.push_back(MakeTag(slot, m));
        }
      } else {
        load = SlotLoad();
        load.layer = layer;
        load.expert = placement.expert;
        load.waiting = all;
      }
      load.state = SlotLoad::State::kDemand;
      load.failed = load.announced = false;
      if (load.complete()) {
        there_.push_back(placement.expert);
        continue;
      }
      unfinished_++;
      event_read_bytes_ += its_layer.expert_bytes() - load.bytes;
      SubmitDemandLocked(slot, load.waiting, &reads);
      AnnounceLocked(&load);
    }
    if (unfinished_ == 0) idle_since_ = began_;
    TakeStagedLocked(&reads);
  }
  if (!there_.empty()) demand.arrivals->PostWeights(demand.ticket, there_);
  tallies_->prefetched_misses += prefetched_misses;
  tallies_->bytes_read += prefetched_bytes;
  tallies_->prefetch_useful_bytes += prefetched_bytes;
  for (const uint64_t tag : promoted) parts_.reader->Promote(tag);
  Submit(reads);
}

void StorageSource::End() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return unfinished_ == 0; });
  last_read_bytes_ = failure_.ok() ? event_read_bytes_ : 0;
  last_read_ns_ = event_read_ns_;
  tallies_->read_ns += event_read_ns_;
  for (const SlotId slot : event_slots_) {
    if (loads_[slot].failed) failed_.push_back(loads_[slot].expert);
    loads_[slot].state = SlotLoad::State::kIdle;
  }
  event_slots_.clear();
}

Read StorageSource::MakeRead(SlotId slot, int m, bool background) const {
  const SlotLoad& load = loads_[slot];
  const ExpertMatrix& matrix = MatrixOf(load, m);
  Read read;
  read.file = matrix.shard;
  read.offset = matrix.offset + load.expert * matrix.expert_bytes;
  read.n_bytes = matrix.expert_bytes;
  read.tag = MakeTag(slot, m);
  read.background = background;
  Touch(slot);
  if (layout_.at(load.layer, m).in_place) read.dest = this->matrix(slot, load.layer, m);
  return read;
}

void StorageSource::Submit(const std::vector<Read>& reads) {
  if (reads.empty()) return;
  parts_.reader->Submit(reads.data(), static_cast<int>(reads.size()),
                        [this](const Read& read, const Status& status) { OnRead(read, status); });
}

// Appends the reads that can land in their slot; the others wait for a staging buffer.
void StorageSource::SubmitDemandLocked(SlotId slot, uint32_t matrices, std::vector<Read>* reads) {
  SlotLoad& load = loads_[slot];
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
void StorageSource::TakeStagedLocked(std::vector<Read>* reads) {
  while (!staged_.empty()) {
    uint8_t* buffer = parts_.staging->TryTake();
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

// Brings what passed through staging to its slot.
void StorageSource::Fill(const Read& read, const Status& status, int layer, int m, SlotId slot) {
  if (layout_.at(layer, m).in_place) return;
  if (status.ok()) {
    uint8_t* dest = matrix(slot, layer, m);
    if (parts_.transform) {
      parts_.transform(layer, m, read.dest, dest);
    } else {
      std::memcpy(dest, read.dest, read.n_bytes);
    }
  }
  parts_.staging->Give(read.dest - read.offset % kPage);
}

// Runs on an I/O thread, or, for reads that are cancelled, on the thread that cancels them.
void StorageSource::OnRead(const Read& read, const Status& status) {
  const SlotId slot = TagSlot(read.tag);
  const int m = TagMatrix(read.tag);
  const uint32_t bit = 1u << m;
  SlotLoad& load = loads_[slot];
  const int layer = load.layer;  // of a slot that is being filled, it stays
  Fill(read, status, layer, m, slot);
  std::vector<Read> next;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    load.in_flight &= ~bit;
    if (read.background) {
      prefetch_in_flight_--;
      prefetch_in_flight_bytes_ -= read.n_bytes;
      prefetch_staged_ -= layout_.at(layer, m).in_place ? 0 : 1;
    }
    const bool demand = load.state == SlotLoad::State::kDemand;
    if (status.ok()) {
      load.bytes += read.n_bytes;
      if (demand) tallies_->bytes_read += read.n_bytes;
      if (demand && read.background) tallies_->prefetch_useful_bytes += read.n_bytes;
    } else if (!demand) {
      load.waiting |= bit;
      load.failed |= status.code() != Code::kCancelled;
    } else if (read.background) {
      // It went wrong on behalf of nobody; now somebody wants it.
      load.waiting |= bit;
      SubmitDemandLocked(slot, bit, &next);
    } else {
      if (!load.failed) {
        const Status failure = ReadFailure((*parts_.layers)[layer], load.expert, m,
                                           parts_.model->paths()[read.file], read.offset, status);
        if (failure_.ok()) failure_ = failure;
        arrivals_->Post(ticket_, Arrival::Kind::kFailed, load.expert, failure);
      }
      load.failed = true;
    }
    if (demand) AnnounceLocked(&load);
    if (demand && load.complete()) FinishLocked(load);
    TakeStagedLocked(&next);
    TakePrefetchLocked(&next);
    // Notified under the lock: the last notification may be what lets the source be destroyed.
    if (!demand && load.in_flight == 0) changed_.notify_all();
  }
  Submit(next);
}

// Once for an event's expert, also where its down has to be read again.
void StorageSource::AnnounceLocked(SlotLoad* load) {
  if (load->announced || load->failed || !load->lacks_only(last_matrix_)) return;
  load->announced = true;
  arrivals_->Post(ticket_, Arrival::Kind::kAllButDown, load->expert);
}

void StorageSource::FinishLocked(const SlotLoad& load) {
  unfinished_--;
  if (unfinished_ == 0) {
    idle_since_ = Clock::now();
    event_read_ns_ = Nanoseconds(idle_since_ - began_);
    changed_.notify_all();
  }
  if (!load.failed) arrivals_->Post(ticket_, Arrival::Kind::kWeights, load.expert);
}

}  // namespace remoe

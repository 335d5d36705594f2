// The side of the ExpertStore that reads what no event has asked for yet.
#include <algorithm>

#include "runtime/expert_store.h"

namespace remoe {

namespace {

// Where all experts fit the cache, no slot is kept spare: so many may be read ahead of a decode
// event.
constexpr int kRoomWhereAllFit = 4;
// Of a stream, handed to the reader at a time: what is given up before costs nothing.
constexpr uint64_t kStreamBytes = 8u << 20;

}  // namespace

int ExpertStore::ahead_room() const {
  const Geometry& geometry = cache_->geometry();
  const bool all_fit = cache_->total_slots() >= geometry.total();
  return all_fit ? kRoomWhereAllFit : cache_->total_slots() - geometry.n_slots;
}

void ExpertStore::PlanAhead(const AheadPlan& plan) {
  for (const AheadRequest& request : plan_.wanted) planned_[IdOf(request)] = false;
  plan_ = plan;
  next_planned_ = 0;
  if (plan_.wanted.empty() && ahead_slots_.empty()) return;
  first_planned_ = last_planned_ = plan_.wanted.empty() ? 0 : plan_.wanted.front().layer;
  for (const AheadRequest& request : plan_.wanted) {
    planned_[IdOf(request)] = true;
    first_planned_ = std::min(first_planned_, request.layer);
    last_planned_ = std::max(last_planned_, request.layer);
  }
  GiveUpAhead([this](const Load& load) {
    if (planned_[IdOf({load.layer, load.expert})]) return false;
    // What has begun and may still be asked for is better ended than begun again.
    return load.layer <= layer_ || (load.bytes == 0 && load.in_flight == 0);
  });
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ahead_.clear();  // in the order of the new plan from here on
    streaming_ = plan_.stream;
  }
  ReserveAhead();
}

void ExpertStore::CancelAhead() {
  for (const AheadRequest& request : plan_.wanted) planned_[IdOf(request)] = false;
  plan_.wanted.clear();
  GiveUpAhead([](const Load&) { return true; });
  reader_->CancelBackground();
  ReapAhead();
}

// Slots are given out by the thread that runs events, as they come free; reads follow on I/O
// threads.
void ExpertStore::ReserveAhead() {
  std::vector<Read> reads;
  for (; next_planned_ < plan_.wanted.size(); next_planned_++) {
    const AheadRequest& request = plan_.wanted[next_planned_];
    if (cache_->SlotOf(request.layer, request.expert) != kNoSlot) continue;
    SlotId slot = cache_->AheadSlotOf(request.layer, request.expert);
    const bool fresh = slot == kNoSlot;
    if (fresh) {
      const int most = plan_.stream ? cache_->total_slots() - event_slots_ : ahead_room();
      if (cache_->n_ahead() >= most) break;
      slot = cache_->BeginAhead(request.layer, request.expert, plan_.stream, first_planned_,
                                last_planned_);
      if (slot == kNoSlot) break;
      ahead_slots_.push_back(slot);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    Load& load = loads_[slot];
    if (fresh) {
      load = Load();
      load.state = Load::State::kAhead;
      load.layer = request.layer;
      load.expert = request.expert;
      load.waiting = (1u << (*layers_)[request.layer].matrices.size()) - 1;
    }
    load.given_up = false;
    if (load.waiting != 0) ahead_.push_back(slot);
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    TakeAheadLocked(&reads);
  }
  Submit(reads);
}

// Appends the background reads that may start now: so many bytes of them when a prompt streams, one
// matrix while the device would be idle otherwise.
void ExpertStore::TakeAheadLocked(std::vector<Read>* reads) {
  if (!streaming_ && (unfinished_ > 0 || ahead_in_flight_ > 0)) return;
  while (!ahead_.empty()) {
    const SlotId slot = ahead_.front();
    Load& load = loads_[slot];
    for (int m = 0; load.waiting >> m != 0 && !load.failed; m++) {
      if ((load.waiting >> m & 1) == 0) continue;
      if (ahead_in_flight_ > 0 && ahead_in_flight_bytes_ >= kStreamBytes) return;
      uint8_t* buffer = nullptr;
      if (!layout_.at(load.layer, m).in_place) {
        // Half of the staging is left to demand reads.
        const bool free = staged_.empty() && ahead_staged_ < std::max(1, staging_buffers_ / 2);
        buffer = free ? staging_->TryTake() : nullptr;
        if (buffer == nullptr) return;
        ahead_staged_++;
      }
      Read read = MakeRead(slot, m, true);
      if (buffer != nullptr) read.dest = buffer + read.offset % kPage;
      load.waiting &= ~(1u << m);
      load.in_flight |= 1u << m;
      ahead_in_flight_++;
      ahead_in_flight_bytes_ += read.n_bytes;
      reads->push_back(read);
      if (!streaming_) return;
    }
    ahead_.pop_front();
  }
}

template <typename Which>
void ExpertStore::GiveUpAhead(const Which& which) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const SlotId slot : ahead_slots_) {
      Load& load = loads_[slot];
      if (load.given_up || !which(load)) continue;
      load.given_up = true;
      ahead_given_up_++;
      ahead_.erase(std::remove(ahead_.begin(), ahead_.end(), slot), ahead_.end());
    }
  }
  ReapAhead();
}

void ExpertStore::ReapAhead() {
  if (ahead_slots_.empty()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto done = [this](SlotId slot) {
    Load& load = loads_[slot];
    if (!load.given_up || load.in_flight != 0) return false;
    ahead_wasted_bytes_ += load.bytes;
    cache_->EndAhead(load.layer, load.expert);
    load.state = Load::State::kNone;
    return true;
  };
  ahead_slots_.erase(std::remove_if(ahead_slots_.begin(), ahead_slots_.end(), done),
                     ahead_slots_.end());
}

// Experts held ahead for later events give way to one that could not be placed otherwise.
void ExpertStore::MakeRoomFor(const Event& event) {
  if (event.n > cache_->geometry().n_slots || cache_->Fits(event)) return;
  GiveUpAhead([&event](const Load& load) {
    return load.layer != event.layer || std::find(event.experts, event.experts + event.n,
                                                  load.expert) == event.experts + event.n;
  });
  reader_->CancelBackground();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] {
      return std::none_of(ahead_slots_.begin(), ahead_slots_.end(), [this](SlotId slot) {
        return loads_[slot].given_up && loads_[slot].in_flight != 0;
      });
    });
  }
  ReapAhead();
}

}  // namespace remoe

#include "runtime/prefetcher.h"

#include <algorithm>

namespace remoe {

namespace {

using State = SlotLoad::State;

// Where all experts fit the cache, no slot is reserved: so many may be prefetched for a decode
// event.
constexpr int kRoomWhereAllFit = 4;

bool Asks(const Event& event, const SlotLoad& load) {
  return load.layer == event.layer &&
         std::find(event.experts, event.experts + event.n, load.expert) != event.experts + event.n;
}

}  // namespace

Prefetcher::Prefetcher(Cache* cache, StorageSource* storage, const std::vector<ExpertLayer>* layers,
                       int event_slots, StoreTallies* tallies)
    : cache_(cache),
      storage_(storage),
      layers_(layers),
      event_slots_(event_slots),
      tallies_(tallies),
      planned_(cache->geometry().total()) {}

int Prefetcher::room() const {
  const Geometry& geometry = cache_->geometry();
  const bool all_fit = cache_->total_slots() >= geometry.total();
  return all_fit ? kRoomWhereAllFit : cache_->total_slots() - geometry.n_slots;
}

bool Prefetcher::Exists(const PrefetchRequest& request) const {
  return request.layer >= 0 && request.layer < static_cast<int>(layers_->size()) &&
         request.expert < (*layers_)[request.layer].n_experts;
}

void Prefetcher::ForgetPlan() {
  for (const PrefetchRequest& request : plan_.wanted) {
    planned_[IdOf(request.layer, request.expert)] = false;
  }
  plan_.wanted.clear();
  plan_.priority = PrefetchPriority::kToken;
  next_planned_ = 0;
}

int Prefetcher::Start(const PrefetchPlan& plan, int layer) {
  if (plan_.priority == PrefetchPriority::kStart) EndStart(nullptr);
  ForgetPlan();
  if (plan.wanted.empty() && slots_.empty()) return 0;
  plan_.priority = plan.priority;
  for (const PrefetchRequest& request : plan.wanted) {
    if (Exists(request)) plan_.wanted.push_back(request);
  }
  first_planned_ = last_planned_ = plan_.wanted.empty() ? 0 : plan_.wanted.front().layer;
  for (const PrefetchRequest& request : plan_.wanted) {
    planned_[IdOf(request.layer, request.expert)] = true;
    first_planned_ = std::min(first_planned_, request.layer);
    last_planned_ = std::max(last_planned_, request.layer);
  }
  if (!slots_.empty()) {
    const bool start = plan_.priority == PrefetchPriority::kStart;
    GiveUp([&](const SlotLoad& load) {
      if (planned_[IdOf(load.layer, load.expert)]) return false;
      // What has begun and may still be asked for is better ended than begun again.
      return start || load.layer <= layer || load.untouched();
    });
    Reap();
  }
  storage_->Prefetch({}, plan_.priority);  // in the order of the new plan from here on
  return ReserveMore();
}

void Prefetcher::Cancel() {
  ForgetPlan();
  GiveUp([](const SlotLoad&) { return true; });
  storage_->StopPrefetch();
  storage_->CancelReads();
  Reap();
}

// Slots are given out by the thread that runs events, as they come free; reads follow on I/O
// threads.
int Prefetcher::ReserveMore() {
  std::vector<SlotId> wanted;
  int n_fresh = 0;
  for (; next_planned_ < plan_.wanted.size(); next_planned_++) {
    const PrefetchRequest& request = plan_.wanted[next_planned_];
    if (cache_->SlotOf(request.layer, request.expert) != kNoSlot) continue;
    SlotId slot = cache_->PrefetchSlotOf(request.layer, request.expert);
    if (slot == kNoSlot) {
      PrefetchSlots from;
      from.reserved = plan_.priority != PrefetchPriority::kStart;
      if (plan_.priority == PrefetchPriority::kToken && cache_->n_prefetched() >= room()) break;
      if (plan_.priority == PrefetchPriority::kPrompt) {
        if (cache_->n_prefetched() >= cache_->total_slots() - event_slots_) break;
        from.expendable = true;
        from.first_layer = first_planned_;
        from.last_layer = last_planned_;
      }
      slot = cache_->BeginPrefetch(request.layer, request.expert, from);
      if (slot == kNoSlot) break;
      storage_->Reserve(slot, request.layer, request.expert);
      slots_.push_back(slot);
      n_fresh++;
    }
    wanted.push_back(slot);
  }
  if (!wanted.empty() || !slots_.empty()) storage_->PrefetchMore(wanted);
  return n_fresh;
}

template <typename Which>
std::vector<SlotId> Prefetcher::GiveUp(const Which& which) {
  std::vector<SlotId> given_up;
  for (const SlotId slot : slots_) {
    if (which(storage_->load(slot))) given_up.push_back(slot);
  }
  tallies_->prefetch_given_up += storage_->Cancel(given_up);
  return given_up;
}

void Prefetcher::Reap() {
  const auto done = [this](SlotId slot) {
    const SlotLoad load = storage_->load(slot);
    if (load.state != State::kCancelled || load.in_flight != 0) return false;
    tallies_->prefetch_wasted_bytes += load.bytes;
    cache_->EndPrefetch(load.layer, load.expert);
    storage_->Release(slot);
    return true;
  };
  slots_.erase(std::remove_if(slots_.begin(), slots_.end(), done), slots_.end());
}

void Prefetcher::MakeRoom(const Event& event) {
  if (plan_.priority == PrefetchPriority::kStart) EndStart(&event);
  if (slots_.empty()) return;
  Reap();
  if (event.n > cache_->geometry().n_slots || cache_->Fits(event)) return;
  GiveUp([&event](const SlotLoad& load) { return !Asks(event, load); });
  storage_->CancelReads();
  // Those that were given up earlier too.
  std::vector<SlotId> others;
  for (const SlotId slot : slots_) {
    if (storage_->load(slot).state == State::kCancelled) others.push_back(slot);
  }
  storage_->Await(others);
  Reap();
}

void Prefetcher::ForgetTaken() {
  if (slots_.empty()) return;
  slots_.erase(std::remove_if(slots_.begin(), slots_.end(),
                              [this](SlotId slot) {
                                const State state = storage_->load(slot).state;
                                return state == State::kDemand || state == State::kIdle;
                              }),
               slots_.end());
}

void Prefetcher::FinishStart() {
  if (plan_.priority != PrefetchPriority::kStart) return;
  storage_->Drain();
  EndStart(nullptr);
}

void Prefetcher::Quiesce() {
  if (plan_.priority == PrefetchPriority::kStart) EndStart(nullptr);
  Cancel();
  storage_->Await(slots_);
  Reap();
}

// What is complete becomes resident; the event goes on with what it asks for; the rest is dropped.
void Prefetcher::EndStart(const Event* event) {
  ForgetPlan();
  storage_->StopPrefetch();
  storage_->CancelReads();
  std::vector<SlotId> unasked;
  for (const SlotId slot : slots_) {
    if (event == nullptr || !Asks(*event, storage_->load(slot))) unasked.push_back(slot);
  }
  storage_->Await(unasked);
  std::vector<SlotId> kept;
  for (const SlotId slot : slots_) {
    const SlotLoad load = storage_->load(slot);
    const bool asked = event != nullptr && Asks(*event, load);
    if (load.state == State::kPrefetch && load.complete() && cache_->CanAdmit()) {
      cache_->Admit(load.layer, load.expert);
      tallies_->start_experts++;
      tallies_->start_bytes += load.bytes;
    } else if (asked) {
      kept.push_back(slot);
      continue;
    } else {
      (load.state == State::kCancelled ? tallies_->prefetch_wasted_bytes
                                       : tallies_->start_dropped_bytes) += load.bytes;
      cache_->EndPrefetch(load.layer, load.expert);
    }
    storage_->Release(slot);
  }
  slots_ = std::move(kept);
}

}  // namespace remoe

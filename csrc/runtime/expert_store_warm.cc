// The part of ExpertStore that reads experts before anything asks for them, while the model has
// nothing to do.
#include <cstring>

#include "runtime/expert_store.h"

namespace remoe {

namespace {

constexpr int kMatrixBits = 3;

}  // namespace

int ExpertStore::Warm(const std::vector<ExpertId>& experts) {
  if (open_) return 0;
  EndWarming();
  ReapAhead();
  std::vector<bool> begun_already(cache_->geometry().total());
  const int n_experts = cache_->geometry().n_experts;
  std::vector<Read> reads;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    warm_ends_ = false;
    next_warm_staged_ = 0;
    for (const ExpertId id : experts) {
      const int layer = static_cast<int>(id) / n_experts;
      const uint16_t expert = static_cast<uint16_t>(id % n_experts);
      if (layer >= static_cast<int>(layers_->size()) || expert >= (*layers_)[layer].n_experts ||
          cache_->SlotOf(layer, expert) != kNoSlot ||
          cache_->AheadSlotOf(layer, expert) != kNoSlot || begun_already[id]) {
        continue;
      }
      const SlotId slot = cache_->TakeFree();
      if (slot == kNoSlot) break;
      const std::vector<ExpertMatrix>& matrices = (*layers_)[layer].matrices;
      begun_already[id] = true;
      const int index = static_cast<int>(warming_.size());
      warming_.push_back({layer, expert, slot, static_cast<int>(matrices.size()), false});
      for (int m = 0; m < static_cast<int>(matrices.size()); m++) {
        if (!layout_.at(layer, m).in_place) {
          warm_staged_.emplace_back(index, m);
          continue;
        }
        reads.push_back(WarmRead(index, m));
        reads.back().dest = matrix(slot, layer, m);
      }
    }
    warm_in_flight_ += static_cast<int>(reads.size());
  }
  const int begun = static_cast<int>(warming_.size());
  if (!reads.empty()) {
    reader_->Submit(reads.data(), static_cast<int>(reads.size()),
                    [this](const Read& read, const Status& status) { OnWarmRead(read, status); });
  }
  SubmitWarm();
  return begun;
}

Read ExpertStore::WarmRead(int index, int m) const {
  const Warming& warming = warming_[index];
  const ExpertMatrix& matrix = (*layers_)[warming.layer].matrices[m];
  Read read;
  read.file = matrix.shard;
  read.offset = matrix.offset + warming.expert * matrix.expert_bytes;
  read.n_bytes = matrix.expert_bytes;
  read.tag = static_cast<uint64_t>(index) << kMatrixBits | m;
  read.background = true;
  return read;
}

// Those that pass through staging go one buffer after the other; called again as buffers come free.
void ExpertStore::SubmitWarm() {
  std::vector<Read> batch;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!warm_ends_ && next_warm_staged_ < warm_staged_.size()) {
      uint8_t* buffer = staging_->TryTake();
      if (buffer == nullptr) break;
      const auto [index, m] = warm_staged_[next_warm_staged_++];
      Read read = WarmRead(index, m);
      read.dest = buffer + read.offset % kPage;
      batch.push_back(read);
    }
    warm_in_flight_ += static_cast<int>(batch.size());
  }
  if (batch.empty()) return;
  reader_->Submit(batch.data(), static_cast<int>(batch.size()),
                  [this](const Read& read, const Status& status) { OnWarmRead(read, status); });
}

// Runs on an I/O thread, or on the one that ends the warming.
void ExpertStore::OnWarmRead(const Read& read, const Status& status) {
  const int index = static_cast<int>(read.tag >> kMatrixBits);
  const int m = static_cast<int>(read.tag & ((1u << kMatrixBits) - 1));
  const Warming& warming = warming_[index];  // stands still while anything is in flight
  if (!layout_.at(warming.layer, m).in_place) {
    if (status.ok()) {
      uint8_t* dest = matrix(warming.slot, warming.layer, m);
      if (transform_) {
        transform_(warming.layer, m, read.dest, dest);
      } else {
        std::memcpy(dest, read.dest, read.n_bytes);
      }
    }
    staging_->Give(read.dest - read.offset % kPage);
    SubmitWarm();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  // Whoever needs an expert that could not be read will hear of it.
  if (status.ok()) {
    warming_[index].remaining--;
  } else {
    warming_[index].failed = true;
  }
  warm_in_flight_--;
  changed_.notify_one();
}

void ExpertStore::FinishWarming() {
  reader_->Drain();
  EndWarming();
}

void ExpertStore::EndWarming() {
  if (warming_.empty()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    warm_ends_ = true;
  }
  reader_->CancelBackground();
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return warm_in_flight_ == 0; });
  for (const Warming& warming : warming_) {
    if (warming.failed || warming.remaining > 0) {
      cache_->GiveBack(warming.slot);
      continue;
    }
    cache_->Admit(warming.layer, warming.expert, warming.slot);
    warm_experts_++;
    warm_bytes_ += (*layers_)[warming.layer].expert_bytes();
  }
  warming_.clear();
  warm_staged_.clear();
}

}  // namespace remoe

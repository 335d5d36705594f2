#include "remote/peer_reader.h"

#include <chrono>

#include "base/format.h"

namespace remoe {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTries = 3;        // peers that are asked for one matrix where storage has none
constexpr double kSooner = 0.8;  // a peer has to be so much sooner than storage
constexpr uint64_t kTryEvery = 32;

}  // namespace

PeerReader::PeerReader(std::unique_ptr<Reader> storage, const std::vector<ExpertLayer>& layers,
                       bool storage_has_experts)
    : storage_(std::move(storage)), storage_has_experts_(storage_has_experts) {
  for (size_t l = 0; l < layers.size(); l++) {
    for (size_t m = 0; m < layers[l].matrices.size(); m++) {
      const ExpertMatrix& matrix = layers[l].matrices[m];
      spans_[{matrix.shard, matrix.offset}] = {
          matrix.expert_bytes,
          matrix.offset + matrix.expert_bytes * static_cast<uint64_t>(layers[l].n_experts),
          static_cast<int>(l), static_cast<int>(m)};
    }
  }
}

PeerReader::~PeerReader() {
  Drain();
}

void PeerReader::SetPeers(WeightsElsewhere* peers) {
  const std::unique_lock<std::shared_mutex> lock(peers_mutex_);
  peers_ = peers;
}

PeerReader::Where PeerReader::Find(const Read& read, WeightsElsewhere::Matrix* matrix) const {
  auto next = spans_.upper_bound({read.file, read.offset});
  if (next == spans_.begin()) return Where::kNoExpert;
  const auto& [begin, span] = *--next;
  if (begin.first != read.file || read.offset >= span.end) return Where::kNoExpert;
  const uint64_t at = read.offset - begin.second;
  if (at % span.expert_bytes != 0 || read.n_bytes != span.expert_bytes) return Where::kPart;
  *matrix = {span.layer, static_cast<uint16_t>(at / span.expert_bytes), span.matrix};
  return Where::kMatrix;
}

void PeerReader::Submit(const Read* reads, int n, const ReadDone& done) {
  std::vector<Read> here;
  for (int i = 0; i < n; i++) {
    if (!SendForIt(reads[i], done, 0)) here.push_back(reads[i]);
  }
  if (!here.empty()) ReadHere(here.data(), static_cast<int>(here.size()), done);
}

void PeerReader::ReadHere(const Read* reads, int n, const ReadDone& done) {
  int64_t n_bytes = 0;
  for (int i = 0; i < n; i++) n_bytes += static_cast<int64_t>(reads[i].n_bytes);
  storage_bytes_ += n_bytes;
  const auto began = Clock::now();
  storage_->Submit(reads, n, [this, done, began](const Read& read, const Status& status) {
    const int64_t others = storage_bytes_.fetch_sub(static_cast<int64_t>(read.n_bytes));
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - began);
    // What was under way together took that time together.
    if (status.ok() && !read.background) {
      storage_rate_.Add(static_cast<uint64_t>(others), us.count());
    }
    done(read, status);
  });
}

bool PeerReader::SendForIt(const Read& read, const ReadDone& done, int tries) {
  WeightsElsewhere::Matrix matrix;
  const Where where = Find(read, &matrix);
  if (where == Where::kNoExpert) return false;
  if (storage_has_experts_ && (where == Where::kPart || read.background || tries > 0)) return false;
  {
    const std::shared_lock<std::shared_mutex> lock(peers_mutex_);
    bool send = peers_ != nullptr && where == Where::kMatrix;
    if (send && storage_has_experts_) {
      const double rate = storage_rate_.bytes_per_s();
      const double here_us =
          rate == 0 ? 0 : 1e6 * (static_cast<double>(storage_bytes_) + read.n_bytes) / rate;
      const double there_us = peers_->ExpectedUs(matrix, read.n_bytes);
      // Once in a while whatever is expected: what was measured may be long ago.
      const bool tries_it = n_choices_++ % kTryEvery == 0;
      send = there_us >= 0 && (tries_it || there_us < kSooner * here_us);
    }
    if (send) {
      {
        const std::lock_guard<std::mutex> counting(mutex_);
        under_way_++;
      }
      const auto over = [this, read, done, tries](const Status& status) {
        if (status.ok()) {
          done(read, status);
        } else if (!SendForIt(read, done, tries + 1)) {
          ReadHere(&read, 1, done);
        }
        const std::lock_guard<std::mutex> counting(mutex_);
        under_way_--;
        ended_.notify_all();
      };
      if (tries < kTries && peers_->Fetch(matrix, read.n_bytes, read.dest, over)) return true;
      const std::lock_guard<std::mutex> counting(mutex_);
      under_way_--;
      ended_.notify_all();
    }
  }
  if (storage_has_experts_) return false;
  done(read, Status(Code::kIo, "this file holds no experts, and no peer sends this one"));
  return true;
}

void PeerReader::Drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  ended_.wait(lock, [this] { return under_way_ == 0; });
  lock.unlock();
  storage_->Drain();
}

}  // namespace remoe

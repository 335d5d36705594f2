// What a worker says while it serves: rows, weights, what it holds, and what does not come.
#include <poll.h>

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "remote/peer.h"

namespace remoe {

namespace {

constexpr int kSilentMs = 3000;     // after which the connection is given up
constexpr int kManyRows = 8;        // from which on an ask says how long one more row takes
constexpr double kKeptOfRow = 0.8;  // of the running mean

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

void Peer::PostFailed(const Wanted& wanted, const std::string& why) {
  if (wanted.arrivals == nullptr) return;
  wanted.arrivals->Post(wanted.ticket, Arrival::Kind::kFailed, wanted.expert,
                        Status(Code::kIo, why));
}

Status Peer::Poll(int timeout_ms) {
  pollfd polled[2];
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const short events = stream_->n_unsent() > 0 ? POLLIN | POLLOUT : POLLIN;
    polled[0] = {stream_->fd(), events, 0};
  }
  polled[1] = {wake_.fd(), POLLIN, 0};
  poll(polled, 2, timeout_ms);
  if (polled[1].revents != 0) {
    wake_.Clear();
    woken_ = true;
  }
  std::vector<Frame> frames;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    REMOE_RETURN_IF_ERROR(stream_->Flush());
    if (polled[0].revents & ~POLLOUT) {
      const Status status = stream_->Receive(&frames);
      if (frames.empty()) REMOE_RETURN_IF_ERROR(status);
    }
    if (!frames.empty()) heard_ = Clock::now();
    // Nothing was asked for before: silence begins now.
    if (pending_.empty() && fetching_.empty()) heard_ = Clock::now();
  }
  for (Frame& frame : frames) REMOE_RETURN_IF_ERROR(Take(std::move(frame)));
  GiveUpLate();
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool waits =
      unanswered_ > 0 || !fetching_.empty() || (!links_.has_copy && !pending_.empty());
  const bool silent = waits && Clock::now() - heard_ > std::chrono::milliseconds(kSilentMs);
  return silent ? Status(Code::kIo, "it has been silent for 3 s") : Status::Ok();
}

void Peer::GiveUpLate() {
  std::vector<uint64_t> slow;
  int n_late = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto now = Clock::now();
    for (auto& [request, pending] : pending_) {
      if (pending.given_up || pending.canary != nullptr || now < pending.late) continue;
      pending.given_up = true;
      n_late++;
      unanswered_++;
      links_.tallies->hedges++;
      PostFailed(pending.wanted, "the peer is late");
    }
    for (const auto& [request, fetching] : fetching_) {
      if (now >= fetching.late) slow.push_back(request);
    }
    if (!slow.empty()) unanswered_++;
  }
  for (const uint64_t request : slow) EndFetch(request, Status(Code::kIo, "the peer is late"));
  for (int i = 0; i < n_late; i++) Bad(Troubles::kLate);
}

// Takes it out first: from then on nobody writes to its memory.
void Peer::EndFetch(uint64_t request, const Status& status) {
  std::function<void(const Status&)> done;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = fetching_.find(request);
    if (found == fetching_.end()) return;
    done = std::move(found->second.weights.done);
    fetching_bytes_ -= found->second.weights.n_bytes;
    fetching_.erase(found);
  }
  done(status);
}

Status Peer::Take(Frame frame) {
  if (frame.kind == FrameKind::kHolds) return TakeChange(frame);
  if (frame.kind == FrameKind::kWeights) return TakeWeights(frame);
  if (frame.kind == FrameKind::kFailed && frame.request == 0) {
    return Status(Code::kIo, "it cannot compute a layer: " + Printable(frame.text()));
  }
  Pending pending;
  bool fetch;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    fetch = fetching_.count(frame.request) > 0;
    const auto found = pending_.find(frame.request);
    if (!fetch && found == pending_.end()) {
      // Of weights that were given up, a last word may still come.
      const bool old = frame.request < next_request_ && frame.kind != FrameKind::kAnswer;
      return old ? Status::Ok() : Status(Code::kCorrupt, "an answer that nobody asked for");
    }
    if (!fetch) {
      pending = std::move(found->second);
      pending_.erase(found);
      if (pending.canary == nullptr) pending_rows_ -= pending.wanted.n_rows;
    }
    unanswered_ = 0;
  }
  if (fetch && (frame.kind == FrameKind::kBusy || frame.kind == FrameKind::kFailed)) {
    EndFetch(frame.request,
             Status(Code::kIo,
                    frame.kind == FrameKind::kBusy ? "the peer is busy" : Printable(frame.text())));
    return Status::Ok();
  }
  if (fetch) return Status(Code::kCorrupt, "a frame that no worker sends");
  switch (frame.kind) {
    case FrameKind::kAnswer:
      return TakeAnswer(std::move(pending), std::move(frame));
    case FrameKind::kBusy:
      links_.tallies->busy++;
      Bad(Troubles::kBusy);
      if (!pending.given_up) PostFailed(pending.wanted, "the peer is busy");
      return Status::Ok();
    case FrameKind::kFailed:
      links_.tallies->lost++;
      if (!pending.given_up) PostFailed(pending.wanted, Printable(frame.text()));
      return Status::Ok();
    default:
      if (!pending.given_up) PostFailed(pending.wanted, "a frame that no worker sends");
      return Status(Code::kCorrupt, "a frame that no worker sends");
  }
}

Status Peer::TakeAnswer(Pending pending, Frame frame) {
  Wanted& wanted = pending.wanted;
  const KnownRecipe recipe = links_.proof->recipe(wanted.recipe);
  if (static_cast<int>(frame.layer) != wanted.layer || frame.expert != wanted.expert ||
      static_cast<int>(frame.rows) != wanted.n_rows || frame.columns != recipe.learned.n_out) {
    if (!pending.given_up) PostFailed(wanted, "an answer to something else");
    return Status(Code::kCorrupt, "an answer to something else");
  }
  const int64_t took_us = Microseconds(Clock::now() - pending.asked);
  const uint64_t moved = frame.payload.size() +
                         sizeof(float) * static_cast<uint64_t>(wanted.n_rows * recipe.learned.n_in);
  // What waited behind others says nothing of the way.
  if (pending.rows_before == 0) rate_.Add(moved, took_us - frame.time_us);
  std::vector<float> rows(frame.values(), frame.values() + frame.payload.size() / sizeof(float));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (wanted.n_rows >= kManyRows) {
      const double now = static_cast<double>(took_us) / (pending.rows_before + wanted.n_rows);
      row_us_ = row_us_ == 0 ? now : kKeptOfRow * row_us_ + (1 - kKeptOfRow) * now;
    }
    if (!pending.given_up) troubles_.Good();
    const bool few = wanted.n_rows < kManyRows;
    if (few && (pending.canary == nullptr || wanted.n_rows == 1)) latency_.Add(took_us);
    if (pending.canary == nullptr && state_ == State::kRefused) {
      return Status(Code::kCancelled, why_);
    }
  }
  if (pending.canary != nullptr) {
    *pending.canary = std::move(rows);
    return Status::Ok();
  }
  links_.tallies->received_bytes += frame.payload.size();
  links_.tallies->compute_us += frame.time_us;
  Audit audit;
  if (wanted.audit) {
    audit = {wanted.recipe, wanted.layer,           wanted.expert,
             wanted.n_rows, std::move(wanted.rows), rows};
  }
  Arrival arrival;
  arrival.kind = Arrival::Kind::kRows;
  arrival.expert = wanted.expert;
  arrival.rows = std::move(rows);
  if (wanted.arrivals->Post(wanted.ticket, std::move(arrival))) {
    links_.tallies->experts++;
    links_.tallies->rows += static_cast<uint64_t>(wanted.n_rows);
  } else {
    links_.tallies->late++;
  }
  if (wanted.audit) links_.audit(weak_from_this(), std::move(audit));
  return Status::Ok();
}

Status Peer::TakeWeights(const Frame& frame) {
  uint64_t ended = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = fetching_.find(frame.request);
    if (found == fetching_.end()) {  // given up
      return frame.request < next_request_
                 ? Status::Ok()
                 : Status(Code::kCorrupt, "weights that nobody asked for");
    }
    Fetching& fetching = found->second;
    Weights& weights = fetching.weights;
    const bool fits =
        static_cast<int>(frame.layer) == weights.layer && frame.expert == weights.expert &&
        static_cast<int>(frame.recipe) == weights.matrix && frame.rows == weights.n_bytes &&
        frame.columns == fetching.received && !frame.payload.empty() &&
        frame.payload.size() <= weights.n_bytes - fetching.received;
    if (!fits) return Status(Code::kCorrupt, "a piece of other weights");
    std::memcpy(weights.dest + fetching.received, frame.payload.data(), frame.payload.size());
    fetching.received += static_cast<uint32_t>(frame.payload.size());
    unanswered_ = 0;
    const auto now = Clock::now();
    const auto patience = fetching.late == Clock::time_point::max()
                              ? Clock::duration::zero()
                              : fetching.late - fetching.asked;
    if (patience.count() > 0)
      fetching.late = now + std::min<Clock::duration>(patience, std::chrono::seconds(1));
    if (fetching.received == weights.n_bytes) {
      ended = frame.request;
      rate_.Add(weights.n_bytes, Microseconds(now - fetching.asked));
      links_.tallies->fetched_bytes += weights.n_bytes;
    }
  }
  if (ended != 0) EndFetch(ended, Status::Ok());
  return Status::Ok();
}

// What it holds from now on has to be checked before it is asked for.
Status Peer::TakeChange(const Frame& frame) {
  Result<HeldChange> change = HeldChange::Parse(frame.payload);
  if (!change.ok()) return change.status();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const ServedExpert& each : change.value().dropped) {
      const std::pair<int, int> key(each.layer, each.expert);
      served_.erase(key);
      announced_.erase(key);
    }
    for (const ServedExpert& each : change.value().added)
      announced_.emplace(each.layer, each.expert);
    if (announced_.size() + served_.size() > capacity_) {
      return Status(Code::kCorrupt, "more experts than it has room for");
    }
  }
  for (const ServedExpert& each : change.value().added) links_.check(weak_from_this(), each);
  return Status::Ok();
}

}  // namespace remoe

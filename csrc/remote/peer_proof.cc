// How a peer is proven: its identity, its weights, and the bits of canary rows.
#include <poll.h>

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "base/thread.h"
#include "remote/peer.h"

namespace remoe {

namespace {

constexpr int kGreetMs = 3000, kCanaryMs = 30000;

}  // namespace

Status Peer::Greet(FrameStream* stream, Welcome* welcome) {
  Frame hello;
  hello.kind = FrameKind::kHello;
  hello.payload = links_.proof->identity().Bytes();
  REMOE_RETURN_IF_ERROR(stream->Send(hello));
  const auto until = Clock::now() + std::chrono::milliseconds(kGreetMs);
  std::vector<Frame> frames;
  while (frames.empty()) {
    if (stopping_) return Status(Code::kCancelled, "stopped");
    if (Clock::now() > until) return Status(Code::kIo, "no answer to the greeting");
    const short events = stream->n_unsent() > 0 ? POLLIN | POLLOUT : POLLIN;
    pollfd polled[] = {{stream->fd(), events, 0}, {wake_.fd(), POLLIN, 0}};
    poll(polled, 2, 100);
    if (polled[1].revents != 0) wake_.Clear();
    REMOE_RETURN_IF_ERROR(stream->Flush());
    const Status status = polled[0].revents & ~POLLOUT ? stream->Receive(&frames) : Status::Ok();
    if (status.code() == Code::kNotSupported) Refuse(status.message());
    if (frames.empty()) REMOE_RETURN_IF_ERROR(status);
  }
  if (frames[0].kind == FrameKind::kRefused) {
    Refuse(Printable(frames[0].text()));
    return Status(Code::kCancelled, "refused");
  }
  if (frames[0].kind == FrameKind::kBusy) return Status(Code::kIo, Printable(frames[0].text()));
  if (frames[0].kind != FrameKind::kWelcome) return Status(Code::kCorrupt, "no welcome");
  Result<Welcome> parsed = Welcome::Parse(frames[0].payload);
  if (!parsed.ok()) return parsed.status();
  const std::string other = WhyOther(links_.proof->identity(), parsed.value().identity);
  if (!other.empty()) {
    Refuse(other);
    return Status(Code::kCancelled, other);
  }
  *welcome = std::move(parsed.value());
  early_.assign(std::make_move_iterator(frames.begin() + 1), std::make_move_iterator(frames.end()));
  return Status::Ok();
}

Status Peer::CheckSums(const Welcome& welcome) {
  for (const ServedExpert& each : welcome.experts) {
    if (stopping_) return Status(Code::kCancelled, "stopped");
    if (each.expert > UINT16_MAX) return Status(Code::kCorrupt, "a damaged welcome");
    Result<ExpertSums> ours =
        links_.proof->Sums(static_cast<int>(each.layer), static_cast<uint16_t>(each.expert));
    if (!ours.ok()) return ours.status();
    if (ours.value().whole == each.sum) continue;
    const std::string why = Format("its weights of %s are not those of our file",
                                   NameOf(each.layer, each.expert).c_str());
    Refuse(why);
    return Status(Code::kCancelled, why);
  }
  return Status::Ok();
}

// Tells the worker how layers are computed.
Status Peer::TellRecipes() {
  while (true) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int number = static_cast<int>(proven_.size());
    if (number >= links_.proof->n_recipes()) return Status::Ok();
    const KnownRecipe recipe = links_.proof->recipe(number);
    Frame frame;
    frame.kind = FrameKind::kRecipe;
    frame.layer = static_cast<uint32_t>(recipe.layer);
    frame.recipe = static_cast<uint32_t>(number);
    frame.payload.assign(recipe.bytes.begin(), recipe.bytes.end());
    REMOE_RETURN_IF_ERROR(stream_->Send(frame));
    proven_.push_back(false);
  }
}

// Has each kind of layer proven of which the worker holds an expert.
Status Peer::ProveKinds() {
  for (int number = 0;; number++) {
    KnownRecipe recipe;
    uint16_t expert;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (number >= static_cast<int>(proven_.size())) return Status::Ok();
      if (proven_[number]) continue;
      recipe = links_.proof->recipe(number);
      const auto first = served_.lower_bound({recipe.layer, 0});
      if (proven_kinds_.count(recipe.learned.kind) > 0) {
        proven_[number] = true;
        continue;
      }
      if (first == served_.end() || first->first != recipe.layer) continue;
      expert = static_cast<uint16_t>(first->second);
    }
    for (const int n_rows : kCanaryRows) {
      REMOE_RETURN_IF_ERROR(Canary(recipe, number, expert, n_rows));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    proven_kinds_.insert(recipe.learned.kind);
    proven_[number] = true;
  }
}

Status Peer::Canary(const KnownRecipe& recipe, int number, uint16_t expert, int n_rows) {
  const std::vector<float> rows = Proof::CanaryRows(n_rows, recipe.learned.n_in);
  std::vector<float> ours, its;
  // Beside this thread, which has to answer for the weights that this may need.
  Result<std::future<Status>> started = StartTask("proves it", [&] {
    return links_.proof->computer()->Compute(recipe.learned.recipe, expert, n_rows, rows.data(),
                                             &ours);
  });
  if (!started.ok()) return started.status();
  std::future<Status>& computed = started.value();
  Frame frame;
  frame.kind = FrameKind::kAsk;
  frame.layer = static_cast<uint32_t>(recipe.layer);
  frame.expert = expert;
  frame.rows = static_cast<uint32_t>(n_rows);
  frame.columns = static_cast<uint32_t>(recipe.learned.n_in);
  frame.recipe = static_cast<uint32_t>(number);
  frame.time_us = kCanaryMs * 1000;
  const auto until = Clock::now() + std::chrono::milliseconds(kCanaryMs);
  Status sent;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    frame.request = next_request_++;
    Pending pending;
    pending.wanted.recipe = number;
    pending.wanted.layer = recipe.layer;
    pending.wanted.expert = expert;
    pending.wanted.n_rows = n_rows;
    pending.asked = Clock::now();
    pending.late = until;
    pending.canary = &its;
    pending_.emplace(frame.request, std::move(pending));
    sent = stream_->Send(frame, rows.data());
  }
  const auto waiting = [&] {
    const bool computes = computed.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
    const std::lock_guard<std::mutex> lock(mutex_);
    return pending_.count(frame.request) > 0 || computes;
  };
  Status status = sent;
  while (status.ok() && waiting()) {
    if (stopping_) status = Status(Code::kCancelled, "stopped");
    if (Clock::now() > until) status = Status(Code::kIo, "no answer to a canary");
    if (status.ok()) status = Poll(std::min(20, PollTimeoutMs()));
  }
  if (!status.ok()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      pending_.erase(frame.request);  // it points into this frame
      sends_weights_ = false;
    }
    LoseAll(status.message());  // what is computed beside must not wait for it
    return status;
  }
  REMOE_RETURN_IF_ERROR(computed.get());
  if (its.empty()) return Status(Code::kIo, "a canary was turned away");
  if (its.size() == ours.size() &&
      std::memcmp(its.data(), ours.data(), its.size() * sizeof(float)) == 0) {
    return Status::Ok();
  }
  links_.tallies->mismatches++;
  const std::string why = Format("it computes %d rows of %s with other bits", n_rows,
                                 NameOf(recipe.layer, expert).c_str());
  Refuse(why);
  return Status(Code::kCancelled, why);
}

}  // namespace remoe

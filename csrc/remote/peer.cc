#include "remote/peer.h"

#include <poll.h>

#include <algorithm>

#include "base/format.h"

namespace remoe {

namespace {

constexpr int kConnectMs = 500;
constexpr int kFirstPauseMs = 100, kLongestPauseMs = 2000;
constexpr int kSilent = 8;        // asks given up in a row, after which nothing more is asked
constexpr int kSilentMs = 3000;   // after which the connection is given up
constexpr int64_t kPatience = 4;  // a worker need not compute what is later than so many times late

FrameLimits AnswerLimits() {
  FrameLimits limits;
  limits.rows = 4096;
  return limits;
}

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

Peer::Peer(Address address, Links links) : address_(std::move(address)), links_(std::move(links)) {
  thread_ = std::thread([this] { Run(); });
}

Peer::~Peer() {
  stopping_ = true;
  wake_.Raise();
  thread_.join();
}

int Peer::Load(int recipe, int layer, uint16_t expert, int n_rows) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool takes = state_ == State::kServing && recipe < static_cast<int>(proven_.size()) &&
                     proven_[recipe] && n_rows <= static_cast<int>(max_rows_) &&
                     pending_.size() < credits_ && unanswered_ < kSilent &&
                     served_.count({layer, expert}) > 0;
  return takes ? static_cast<int>(pending_.size()) : -1;
}

bool Peer::Ask(Wanted wanted) {
  Frame frame;
  frame.kind = FrameKind::kAsk;
  frame.layer = static_cast<uint32_t>(wanted.layer);
  frame.expert = wanted.expert;
  frame.rows = static_cast<uint32_t>(wanted.n_rows);
  frame.columns = static_cast<uint32_t>(wanted.rows.size() / wanted.n_rows);
  frame.recipe = static_cast<uint32_t>(wanted.recipe);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ != State::kServing) return false;
    const int64_t late_us = links_.hedge ? latency_.late_us() : kSilentMs * 1000;
    frame.request = next_request_++;
    frame.time_us = static_cast<uint32_t>(kPatience * late_us);
    links_.tallies->asked++;
    links_.tallies->sent_bytes += wanted.rows.size() * sizeof(float);
    const bool sent = stream_->Send(frame, wanted.rows.data()).ok();
    if (!sent) {
      links_.tallies->lost++;
      wake_.Raise();  // its thread sees the same, and connects again
      return false;
    }
    Pending pending;
    pending.asked = Clock::now();
    pending.late = pending.asked + std::chrono::microseconds(late_us);
    if (!wanted.audit) wanted.rows.clear();
    pending.wanted = std::move(wanted);
    pending_.emplace(frame.request, std::move(pending));
  }
  wake_.Raise();
  return true;
}

std::string Peer::NameOf(int layer, int expert) const {
  return links_.proof->computer()->Name(layer, expert);
}

void Peer::PostFailed(const Wanted& wanted, const std::string& why) {
  if (wanted.arrivals == nullptr) return;
  Arrival arrival;
  arrival.kind = Arrival::Kind::kFailed;
  arrival.expert = wanted.expert;
  arrival.status = Status(Code::kIo, why);
  wanted.arrivals->Post(wanted.ticket, std::move(arrival));
}

void Peer::Refuse(const std::string& why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::kRefused) return;
  }
  SetState(State::kRefused, why);
  LoseAll(why);
  links_.tell(Format("peer %s is not used: %s", address_.text().c_str(), why.c_str()));
  wake_.Raise();
}

void Peer::SetState(State state, const std::string& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kRefused) return;
  state_ = state;
  why_ = why;
  unreachable_ = false;
}

void Peer::LoseAll(const std::string& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [request, pending] : pending_) {
    if (pending.canary != nullptr) continue;
    if (!pending.given_up) PostFailed(pending.wanted, why);
    links_.tallies->lost++;
  }
  pending_.clear();
}

bool Peer::settled() const {
  const int n_recipes = links_.proof->n_recipes();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kRefused) return true;
  if (state_ != State::kServing) return unreachable_;
  return static_cast<int>(proven_.size()) >= n_recipes;
}

Peer::Seen Peer::seen() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Seen seen;
  seen.address = address_.text();
  seen.why = why_;
  seen.n_experts = static_cast<int>(served_.size());
  switch (state_) {
    case State::kConnecting:
      seen.state = "connecting";
      break;
    case State::kChecking:
      seen.state = "checking";
      break;
    case State::kServing:
      seen.state = unanswered_ < kSilent ? "serving" : "silent";
      break;
    case State::kRefused:
      seen.state = "refused";
      break;
  }
  return seen;
}

void Peer::Pause(int ms) {
  pollfd waited{wake_.fd(), POLLIN, 0};
  if (!stopping_) poll(&waited, 1, ms);
  wake_.Clear();
}

void Peer::Run() {
  int pause_ms = kFirstPauseMs;
  bool told = false;
  while (!stopping_) {
    const Status status = Session();
    bool served;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      served = state_ == State::kServing;
      stream_.reset();
      served_.clear();
      proven_.clear();
      unanswered_ = 0;
      unreachable_ = true;
      if (state_ == State::kRefused) return;
      state_ = State::kConnecting;
      why_ = status.message();
    }
    LoseAll(status.message());
    if (stopping_) return;
    if (served || !told) {
      links_.tell(Format("peer %s does not answer (%s): its experts come from storage",
                         address_.text().c_str(), status.message().c_str()));
      told = true;
    }
    pause_ms = served ? kFirstPauseMs : std::min(2 * pause_ms, kLongestPauseMs);
    Pause(pause_ms);
  }
}

// RETURNS: why it is over.
Status Peer::Session() {
  Result<std::unique_ptr<Channel>> channel = ConnectTcp(address_, kConnectMs);
  if (!channel.ok()) return channel.status();
  auto stream = std::make_unique<FrameStream>(std::move(channel.value()), AnswerLimits());
  proven_kinds_.clear();
  Welcome welcome;
  REMOE_RETURN_IF_ERROR(Greet(stream.get(), &welcome));
  SetState(State::kChecking, "");
  REMOE_RETURN_IF_ERROR(CheckSums(welcome));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
    stream_ = std::move(stream);
    credits_ = welcome.credits;
    max_rows_ = welcome.max_rows;
    for (const ServedExpert& each : welcome.experts) served_.emplace(each.layer, each.expert);
    heard_ = Clock::now();
  }
  return ServeUntilLost();
}

Status Peer::ServeUntilLost() {
  while (!stopping_) {
    REMOE_RETURN_IF_ERROR(TellRecipes());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
      if (state_ == State::kChecking) {
        links_.tell(Format("peer %s serves %zu experts", address_.text().c_str(), served_.size()));
        state_ = State::kServing;
      }
    }
    REMOE_RETURN_IF_ERROR(Poll(PollTimeoutMs()));
  }
  return Status(Code::kCancelled, "stopped");
}

int Peer::PollTimeoutMs() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto next = Clock::now() + std::chrono::milliseconds(1000);
  for (const auto& [request, pending] : pending_) {
    if (!pending.given_up) next = std::min(next, pending.late);
  }
  const int64_t us = Microseconds(next - Clock::now());
  return static_cast<int>(std::max<int64_t>(0, (us + 999) / 1000));
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
  if (polled[1].revents != 0) wake_.Clear();
  std::vector<Frame> frames;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    REMOE_RETURN_IF_ERROR(stream_->Flush());
    if (polled[0].revents & ~POLLOUT) {
      const Status status = stream_->Receive(&frames);
      if (frames.empty()) REMOE_RETURN_IF_ERROR(status);
    }
    if (!frames.empty()) heard_ = Clock::now();
  }
  for (Frame& frame : frames) REMOE_RETURN_IF_ERROR(Take(std::move(frame)));
  GiveUpLate();
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool silent =
      unanswered_ > 0 && Clock::now() - heard_ > std::chrono::milliseconds(kSilentMs);
  return silent ? Status(Code::kIo, "it has been silent for 3 s") : Status::Ok();
}

void Peer::GiveUpLate() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto now = Clock::now();
  for (auto& [request, pending] : pending_) {
    if (pending.given_up || pending.canary != nullptr || now < pending.late) continue;
    pending.given_up = true;
    unanswered_++;
    links_.tallies->hedges++;
    PostFailed(pending.wanted, "the peer is late");
  }
}

Status Peer::Take(Frame frame) {
  if (frame.kind == FrameKind::kFailed && frame.request == 0) {
    return Status(Code::kIo, "it cannot compute a layer: " + frame.text());
  }
  Pending pending;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pending_.find(frame.request);
    if (found == pending_.end()) return Status(Code::kCorrupt, "an answer that nobody asked for");
    pending = std::move(found->second);
    pending_.erase(found);
    unanswered_ = 0;
  }
  switch (frame.kind) {
    case FrameKind::kAnswer:
      return TakeAnswer(std::move(pending), std::move(frame));
    case FrameKind::kBusy:
      links_.tallies->busy++;
      if (!pending.given_up) PostFailed(pending.wanted, "the peer is busy");
      return Status::Ok();
    case FrameKind::kFailed:
      links_.tallies->lost++;
      if (!pending.given_up) PostFailed(pending.wanted, frame.text());
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
  std::vector<float> rows(frame.values(), frame.values() + frame.payload.size() / sizeof(float));
  if (pending.canary != nullptr) {
    *pending.canary = std::move(rows);
    if (wanted.n_rows == 1) {
      const std::lock_guard<std::mutex> lock(mutex_);
      latency_.Add(Microseconds(Clock::now() - pending.asked));
    }
    return Status::Ok();
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    latency_.Add(Microseconds(Clock::now() - pending.asked));
    if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
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

}  // namespace remoe

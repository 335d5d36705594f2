#include "remote/peer.h"

#include <poll.h>

#include <algorithm>

#include "base/format.h"
#include "base/thread.h"

namespace remoe {

namespace {

constexpr int kConnectMs = 1000;
constexpr int kFirstPauseMs = 100, kLongestPauseMs = 2000;
constexpr int kSilent = 8;        // asks given up in a row, after which nothing more is asked
constexpr int64_t kPatience = 4;  // a worker need not compute what is later than so many times late
constexpr double kSlack = 3;      // so many times the expected time of many rows is late
constexpr int64_t kMostLateUs = 10000000;
constexpr int64_t kSilentUs = 3000000;     // after which the connection is given up
constexpr int64_t kLeastFetchUs = 100000;  // from one piece of weights to the next

FrameLimits AnswerLimits() {
  FrameLimits limits;
  limits.rows = 4096;
  limits.payload_bytes = 64u << 20;
  return limits;
}

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

void Peer::Start() {
  const Status status = StartThread("asks it", [this] { Run(); }, &thread_);
  if (!status.ok()) Refuse(status.message());
}

void Peer::Stop() {
  stopping_ = true;
  stop_.Raise();
  wake_.Raise();
}

Peer::~Peer() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

int Peer::Load(int recipe, int layer, uint16_t expert, int n_rows) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool takes = state_ == State::kServing && recipe < static_cast<int>(proven_.size()) &&
                     proven_[recipe] && n_rows <= static_cast<int>(max_rows_) &&
                     pending_.size() < credits_ && (unanswered_ < kSilent || !links_.has_copy) &&
                     served_.count({layer, expert}) > 0;
  return takes ? pending_rows_ : -1;
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
    // Many rows, and those before them, take their time.
    const double many_us = kSlack * row_us_ * (pending_rows_ + wanted.n_rows);
    const int64_t late_us =
        links_.hedge ? std::min(latency_.late_us() + static_cast<int64_t>(many_us), kMostLateUs)
                     : kSilentUs;
    frame.request = next_request_++;
    frame.time_us = static_cast<uint32_t>(kPatience * late_us);
    if (!links_.has_copy) frame.time_us = UINT32_MAX;
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
    pending.late = links_.has_copy ? pending.asked + std::chrono::microseconds(late_us)
                                   : Clock::time_point::max();
    pending.rows_before = pending_rows_;
    pending_rows_ += wanted.n_rows;
    if (!wanted.audit) wanted.rows.clear();
    pending.wanted = std::move(wanted);
    pending_.emplace(frame.request, std::move(pending));
  }
  wake_.Raise();
  return true;
}

// REQUIRES: the lock. Without a copy of our own, weights are needed to prove a peer, too: their sums
// have been compared by then.
bool Peer::CanFetchLocked() const {
  if (stream_ == nullptr || !sends_weights_) return false;
  if (!links_.has_copy) return state_ == State::kServing || state_ == State::kChecking;
  return state_ == State::kServing && unanswered_ == 0;
}

int64_t Peer::FetchLoad(int layer, uint16_t expert) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool takes = CanFetchLocked() && fetching_.size() + pending_.size() < credits_ &&
                     served_.count({layer, expert}) > 0;
  return takes ? fetching_bytes_ : -1;
}

bool Peer::Fetch(Weights weights) {
  Frame frame;
  frame.kind = FrameKind::kFetch;
  frame.layer = static_cast<uint32_t>(weights.layer);
  frame.expert = weights.expert;
  frame.recipe = static_cast<uint32_t>(weights.matrix);
  frame.rows = weights.n_bytes;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!CanFetchLocked() || served_.count({weights.layer, weights.expert}) == 0) return false;
    frame.request = next_request_++;
    if (!stream_->Send(frame).ok()) {
      wake_.Raise();
      return false;
    }
    links_.tallies->fetches++;
    Fetching fetching;
    fetching.asked = Clock::now();
    fetching.late = fetching.asked + std::chrono::microseconds(
                                         std::max(kLeastFetchUs, kPatience * latency_.late_us()));
    if (!links_.has_copy) fetching.late = Clock::time_point::max();
    fetching_bytes_ += weights.n_bytes;
    fetching.weights = std::move(weights);
    fetching_.emplace(frame.request, std::move(fetching));
  }
  wake_.Raise();
  return true;
}

std::string Peer::NameOf(int layer, int expert) const {
  return links_.proof->computer()->Name(layer, expert);
}

void Peer::Refuse(const std::string& why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::kRefused) return;
    state_ = State::kRefused;
    why_ = why;
    const std::string name = Name();
    links_.tell({name, Format("%s is not used: %s", name.c_str(), why.c_str())});
  }
  LoseAll(why);
  wake_.Raise();
}

void Peer::Admit(const ServedExpert& expert) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::pair<int, int> key(expert.layer, expert.expert);
    if (announced_.erase(key) > 0) served_.insert(key);
  }
  wake_.Raise();  // its layer may be the first of a kind
}

void Peer::Wish(const std::vector<WishedExpert>& wish) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ != State::kServing || capacity_ == 0) return;
  const auto same = [](const WishedExpert& a, const WishedExpert& b) {
    return a.layer == b.layer && a.expert == b.expert;
  };
  if (wish.size() == wish_.size() && std::equal(wish.begin(), wish.end(), wish_.begin(), same))
    return;
  wish_ = wish;
  Frame frame;
  frame.kind = FrameKind::kWish;
  frame.payload = WishBytes(wish);
  (void)stream_->Send(frame);  // a lost connection is seen by its thread
  wake_.Raise();
}

void Peer::Bad(Troubles::Kind kind) {
  int64_t middle_us;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!troubles_.Bad(kind, Clock::now())) return;
    middle_us = latency_.middle_us();
  }
  const std::string name = Name();
  const char* instead = links_.has_copy ? ": their experts come from storage" : "";
  switch (kind) {
    case Troubles::kLate:
      links_.tell(
          {name + " late", Format("%s is late with most answers%s", name.c_str(), instead)});
      break;
    case Troubles::kBusy:
      links_.tell(
          {name + " busy", Format("%s is busy and turns most asks away%s", name.c_str(), instead)});
      break;
    case Troubles::kSlow:
      links_.tell({name + " slow",
                   Format("%s takes %.0f ms for an answer, longer than storage: it is hardly asked",
                          name.c_str(), static_cast<double>(middle_us) / 1000)});
      break;
  }
}

void Peer::LoseAll(const std::string& why) {
  std::map<uint64_t, Fetching> fetching;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [request, pending] : pending_) {
      if (pending.canary != nullptr) continue;
      if (!pending.given_up) PostFailed(pending.wanted, why);
      links_.tallies->lost++;
    }
    pending_.clear();
    pending_rows_ = 0;
    fetching = std::exchange(fetching_, {});
    fetching_bytes_ = 0;
  }
  for (const auto& [request, each] : fetching) each.weights.done(Status(Code::kIo, why));
}

bool Peer::settled() const {
  const int n_recipes = links_.proof->n_recipes();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kRefused) return true;
  if (state_ != State::kServing) return unreachable_;
  return static_cast<int>(proven_.size()) >= n_recipes;
}

int64_t Peer::answer_us() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return latency_.middle_us();
}

std::set<std::pair<int, int>> Peer::served() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kServing ? served_ : std::set<std::pair<int, int>>();
}

Peer::Seen Peer::seen() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Seen seen;
  seen.address = address_.text();
  seen.why = why_;
  seen.n_experts = static_cast<int>(served_.size());
  seen.capacity = static_cast<int>(capacity_);
  seen.sends_weights = sends_weights_;
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
  while (!stopping_) {
    const Status status = Session();
    if (status.code() == Code::kRefused) Refuse(status.message());
    bool served;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      served = state_ == State::kServing;
      stream_.reset();
      served_.clear();
      announced_.clear();
      proven_.clear();
      proven_kinds_.clear();
      wish_.clear();
      unanswered_ = 0;
      unreachable_ = true;
      if (state_ != State::kRefused) {
        state_ = State::kConnecting;
        why_ = status.message();
        standing_ = Format("does not answer (%s)%s", why_.c_str(),
                           links_.has_copy ? ": its experts come from storage" : "");
        comings_.Went(served);
        if (!stopping_) TellStandingLocked();
      }
    }
    LoseAll(status.message());
    if (stopping_ || seen().state == "refused") return;
    pause_ms = served ? kFirstPauseMs : std::min(2 * pause_ms, kLongestPauseMs);
    Pause(pause_ms);
  }
}

std::string Peer::Name() const {
  return "peer " + address_.text();
}

// REQUIRES: the lock, under which the state changes too: whoever sees how it stands finds the line.
void Peer::TellStandingLocked() {
  if (!comings_.Due(Clock::now())) return;
  const auto n_lost = static_cast<unsigned long long>(comings_.n_lost());
  const std::string name = Name();
  links_.tell({name, Format("%s %s%s", name.c_str(), standing_.c_str(),
                            n_lost > 1 ? Format("; it was lost %llu times", n_lost).c_str() : "")});
}

// RETURNS: why it is over.
Status Peer::Session() {
  Result<std::unique_ptr<Channel>> channel =
      Connect(address_, links_.keys.get(), kConnectMs, &stop_);
  if (!channel.ok()) return channel.status();
  auto stream = std::make_unique<FrameStream>(std::move(channel.value()), AnswerLimits());
  Welcome welcome;
  REMOE_RETURN_IF_ERROR(Greet(stream.get(), &welcome));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
    state_ = State::kChecking;
    why_.clear();
    unreachable_ = false;
  }
  REMOE_RETURN_IF_ERROR(CheckSums(welcome));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
    stream_ = std::move(stream);
    credits_ = welcome.credits;
    max_rows_ = welcome.max_rows;
    capacity_ = welcome.capacity;
    sends_weights_ = welcome.sends_weights;
    for (const ServedExpert& each : welcome.experts) served_.emplace(each.layer, each.expert);
    heard_ = Clock::now();
  }
  for (Frame& frame : std::exchange(early_, {})) REMOE_RETURN_IF_ERROR(Take(std::move(frame)));
  return ServeUntilLost();
}

Status Peer::ServeUntilLost() {
  while (!stopping_) {
    woken_ = false;
    REMOE_RETURN_IF_ERROR(TellRecipes());
    REMOE_RETURN_IF_ERROR(ProveKinds());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (state_ == State::kRefused) return Status(Code::kCancelled, why_);
      if (state_ == State::kChecking) {
        standing_ = Format("serves %zu experts%s", served_.size(),
                           capacity_ > 0 ? Format(" and has room for %u", capacity_).c_str() : "");
        comings_.Came();
        state_ = State::kServing;
      }
      TellStandingLocked();
    }
    // A canary's polls may have taken the wake that came with another recipe, or with the end.
    if (!woken_) REMOE_RETURN_IF_ERROR(Poll(PollTimeoutMs()));
  }
  return Status(Code::kCancelled, "stopped");
}

int Peer::PollTimeoutMs() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto next = Clock::now() + std::chrono::milliseconds(1000);
  for (const auto& [request, pending] : pending_) {
    if (!pending.given_up) next = std::min(next, pending.late);
  }
  for (const auto& [request, fetching] : fetching_) next = std::min(next, fetching.late);
  const int64_t us = Microseconds(next - Clock::now());
  return static_cast<int>(std::max<int64_t>(0, (us + 999) / 1000));
}

}  // namespace remoe

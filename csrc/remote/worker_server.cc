#include "remote/worker_server.h"

#include <poll.h>

#include <algorithm>

#include "base/format.h"
#include "base/thread.h"
#include "remote/worker_frames.h"

namespace remoe {

namespace {

constexpr int kTickMs = 200;  // how often greetings and draining are looked at
constexpr size_t kMostRecipes = 4096;
constexpr uint64_t kGreetingBytes = 64 << 10;
constexpr size_t kMostLines = 100;
constexpr size_t kMostUnsentBytes = 1 << 20;
constexpr uint64_t kUnfinished = 4;  // frames that have not come yet may take so many waiting_bytes

}  // namespace

Result<std::unique_ptr<WorkerServer>> WorkerServer::Make(const Address& address,
                                                         std::shared_ptr<const TlsKeys> keys,
                                                         Welcome welcome, RowComputer* computer,
                                                         HeldExperts* held, const Limits& limits) {
  REMOE_RETURN_IF_ERROR(address.CheckKeys(keys != nullptr));
  Result<std::unique_ptr<Listener>> listener = ListenTcp(address);
  if (!listener.ok()) return listener.status();
  return std::unique_ptr<WorkerServer>(new WorkerServer(
      std::move(listener.value()), std::move(keys), std::move(welcome), computer, held, limits));
}

WorkerServer::WorkerServer(std::unique_ptr<Listener> listener, std::shared_ptr<const TlsKeys> keys,
                           Welcome welcome, RowComputer* computer, HeldExperts* held,
                           const Limits& limits)
    : listener_(std::move(listener)),
      port_(listener_->port()),
      keys_(std::move(keys)),
      welcome_(std::move(welcome)),
      computer_(computer),
      held_experts_(held),
      limits_(limits) {
  for (const ServedExpert& each : welcome_.experts) held_[{each.layer, each.expert}] = each.sum;
}

WorkerServer::~WorkerServer() = default;

// Who has not said who it is gets no memory but for that.
FrameLimits WorkerServer::StrangerLimits() const {
  FrameLimits limits;
  limits.rows = limits.columns = 1;
  limits.payload_bytes = kGreetingBytes;
  return limits;
}

FrameLimits WorkerServer::EngineLimits() const {
  FrameLimits limits;
  limits.rows = welcome_.max_rows;
  limits.columns = limits_.columns;
  limits.payload_bytes =
      std::max({kGreetingBytes, sizeof(float) * uint64_t{limits.rows} * limits.columns,
                uint64_t{welcome_.capacity} * sizeof(WishedExpert)});
  return limits;
}

WorkerCounts WorkerServer::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  WorkerCounts counts = counts_;
  counts.clients = clients_.size();
  counts.experts = held_.size();
  return counts;
}

std::vector<std::string> WorkerServer::TakeLines() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(lines_, {});
}

Status WorkerServer::Run() {
  std::thread computing, moving;
  Status status = StartThread("computes", [this] { ComputeAll(); }, &computing);
  if (status.ok() && held_experts_ != nullptr) {
    status = StartThread("reads what engines wish for", [this] { MoveAll(); }, &moving);
  }
  if (status.ok()) ServeAll();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  wished_.notify_all();
  if (computing.joinable()) computing.join();
  if (moving.joinable()) moving.join();
  listener_.reset();  // nobody is to wait for a worker that has stopped
  const std::lock_guard<std::mutex> lock(mutex_);
  clients_.clear();
  return status;
}

// Until Stop().
void WorkerServer::ServeAll() {
  Clock::time_point give_up{};
  std::vector<pollfd> polled;
  std::vector<std::shared_ptr<Client>> clients;
  while (true) {
    if (stopping_ && give_up == Clock::time_point()) {
      give_up = Clock::now() + std::chrono::milliseconds(limits_.drain_ms);
    }
    polled.assign({{wake_.fd(), POLLIN, 0}});
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_ && (Drained() || Clock::now() > give_up)) return;
      CloseGone();
      if (!stopping_ && Clock::now() >= accepts_again_) {
        polled.push_back({listener_->fd(), POLLIN, 0});
      }
      clients = clients_;
      for (const auto& client : clients) {
        const bool unsent = client->stream.n_unsent() > 0;
        polled.push_back(
            {client->stream.fd(), static_cast<short>(unsent ? POLLIN | POLLOUT : POLLIN), 0});
      }
    }
    poll(polled.data(), polled.size(), kTickMs);
    if (polled[0].revents != 0) wake_.Clear();
    const size_t first = polled.size() - clients.size();
    for (size_t i = 0; i < clients.size(); i++) {
      if (polled[first + i].revents != 0) Serve(clients[i].get());
    }
    if (first == 2 && polled[1].revents != 0) Accept();
  }
}

// REQUIRES: the lock.
bool WorkerServer::Drained() const {
  return std::all_of(clients_.begin(), clients_.end(), [](const auto& client) {
    return client->under_way == 0 && client->stream.n_unsent() == 0;
  });
}

// REQUIRES: the lock.
void WorkerServer::CloseGone() {
  const auto now = Clock::now();
  for (const auto& client : clients_) {
    const bool silent = (!client->greeted || client->closing) &&
                        now - client->since > std::chrono::milliseconds(limits_.greeting_ms);
    client->gone |=
        silent || (client->closing && !client->refused && client->stream.n_unsent() == 0);
    if (!client->gone) continue;
    for (const Ask& ask : client->asks) waiting_bytes_ -= ask.frame.payload.size();
    client->asks.clear();
    client->fetches.clear();
    if (!client->wish.empty()) wished_.notify_all();
  }
  clients_.erase(std::remove_if(clients_.begin(), clients_.end(),
                                [](const auto& client) { return client->gone; }),
                 clients_.end());
}

// REQUIRES: the lock. A stranger leaves for another, and who was refused; no engine for a stranger.
bool WorkerServer::MakeRoom() {
  if (clients_.size() < static_cast<size_t>(limits_.clients)) return true;
  const auto stranger = std::find_if(clients_.begin(), clients_.end(), [](const auto& client) {
    return !client->greeted || client->closing;
  });
  if (stranger == clients_.end()) return false;
  (*stranger)->gone = true;
  CloseGone();
  return true;
}

void WorkerServer::Accept() {
  Result<std::unique_ptr<Channel>> channel = listener_->Accept();
  if (!channel.ok()) {  // such as no more open files: who waits is asked in again later
    accepts_again_ = Clock::now() + std::chrono::milliseconds(kTickMs);
    return;
  }
  if (channel.value() == nullptr) return;
  if (keys_ != nullptr) {
    channel = keys_->Wrap(std::move(channel.value()));
    if (!channel.ok()) return;
  }
  auto client = std::make_shared<Client>(std::move(channel.value()), StrangerLimits());
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!MakeRoom()) {
    (void)client->stream.Send(
        Said(FrameKind::kBusy, Format("it has %d engines already", limits_.clients)));
    counts_.refused++;
    return;
  }
  clients_.push_back(std::move(client));
}

void WorkerServer::Serve(Client* client) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (client->refused) {
    client->gone |= !client->stream.Discard().ok();
    return;
  }
  Status status = client->stream.Flush();
  std::vector<Frame> frames;
  if (status.ok() && !client->closing) status = client->stream.Receive(&frames);
  for (Frame& frame : frames) {
    if (status.ok() && !client->closing) status = Take(client, std::move(frame));
  }
  if (status.code() == Code::kRefused || status.code() == Code::kNotSupported) {
    Refuse(client, status.message());
    return;
  }
  client->gone |= !status.ok();
  if (client->stream.n_unfinished() > kGreetingBytes / 2) BoundUnfinished();
  if (!client->fetches.empty()) changed_.notify_one();  // there may be room for a piece again
}

// REQUIRES: the lock. Frames that come a little at a time, or never as a whole, may not take all memory:
// who has most of it goes.
void WorkerServer::BoundUnfinished() {
  uint64_t n_bytes = 0;
  Client* most = nullptr;
  for (const auto& client : clients_) {
    if (client->gone) continue;
    n_bytes += client->stream.n_unfinished();
    if (most == nullptr || client->stream.n_unfinished() > most->stream.n_unfinished()) {
      most = client.get();
    }
  }
  if (most != nullptr && n_bytes > kUnfinished * limits_.waiting_bytes) most->gone = true;
}

// REQUIRES: the lock. The other end has to read why before the connection is closed.
void WorkerServer::Refuse(Client* client, const std::string& why) {
  client->refused = client->closing = true;
  client->since = Clock::now();
  counts_.refused++;
  const std::string line = refusals_.Line(why, client->since);
  if (!line.empty() && lines_.size() < kMostLines) lines_.push_back(line);
}

Status WorkerServer::Take(Client* client, Frame frame) {
  if (!client->greeted) return Greet(client, frame);
  if (client->stream.n_unsent() > limits_.waiting_bytes) {
    return Status(Code::kIo, "it does not read its answers");
  }
  switch (frame.kind) {
    case FrameKind::kRecipe:
      return Learn(client, frame);
    case FrameKind::kAsk:
      return Queue(client, std::move(frame));
    case FrameKind::kFetch:
      return QueueFetch(client, std::move(frame));
    case FrameKind::kWish:
      return TakeWish(client, frame);
    default:
      return Status(Code::kCorrupt, "a frame that no engine sends");
  }
}

Status WorkerServer::Greet(Client* client, const Frame& hello) {
  if (hello.kind != FrameKind::kHello) return Status(Code::kCorrupt, "no greeting");
  Result<Identity> identity = Identity::Parse(hello.payload);
  if (!identity.ok()) return identity.status();
  client->greeted = true;
  client->stream.set_limits(EngineLimits());
  // Seen from the engine: "its" is the worker's.
  const std::string other = WhyOther(identity.value(), welcome_.identity);
  if (!other.empty() || stopping_) {
    client->closing = true;
    client->since = Clock::now();
    counts_.refused++;
    return client->stream.Send(other.empty() ? Said(FrameKind::kBusy, "it is being stopped")
                                             : Said(FrameKind::kRefused, other));
  }
  Welcome welcome = welcome_;
  welcome.experts.clear();
  for (const auto& [key, sum] : held_) welcome.experts.push_back({key.first, key.second, sum});
  Frame frame;
  frame.kind = FrameKind::kWelcome;
  frame.payload = welcome.Bytes();
  return client->stream.Send(frame);
}

Status WorkerServer::Learn(Client* client, const Frame& frame) {
  if (client->recipes.size() >= kMostRecipes) return Status(Code::kCorrupt, "too many recipes");
  Result<RowComputer::Learned> learned =
      computer_->Learn(static_cast<int>(frame.layer), frame.text());
  if (!learned.ok()) {
    Frame failed = Reply(frame, FrameKind::kFailed, learned.status().message());
    failed.recipe = frame.recipe;
    return client->stream.Send(failed);
  }
  client->recipes[frame.recipe] = learned.value();
  client->layer_of[frame.recipe] = frame.layer;
  return Status::Ok();
}

Status WorkerServer::Queue(Client* client, Frame frame) {
  const auto recipe = client->recipes.find(frame.recipe);
  const bool known =
      recipe != client->recipes.end() && client->layer_of[frame.recipe] == frame.layer &&
      held_.count({frame.layer, frame.expert}) > 0 && frame.columns == recipe->second.n_in;
  if (!known) {
    return client->stream.Send(
        Reply(frame, FrameKind::kFailed,
              Format("layer %u, expert %u is not served so", frame.layer, frame.expert)));
  }
  const bool full = client->under_way >= static_cast<int>(welcome_.credits) ||
                    waiting_bytes_ + frame.payload.size() > limits_.waiting_bytes;
  if (full || stopping_) {
    counts_.busy++;
    return client->stream.Send(Reply(frame, FrameKind::kBusy));
  }
  client->under_way++;
  waiting_bytes_ += frame.payload.size();
  const auto patience = std::chrono::microseconds(frame.time_us);
  client->asks.push_back({std::move(frame), Clock::now() + patience, recipe->second});
  changed_.notify_one();
  return Status::Ok();
}

// REQUIRES: the lock. RETURNS: null when nobody has anything to do.
std::shared_ptr<WorkerServer::Client> WorkerServer::NextWithWork() {
  for (size_t i = 0; i < clients_.size(); i++) {
    const auto& client = clients_[(turn_ + i) % clients_.size()];
    const bool piece = !client->fetches.empty() && client->stream.n_unsent() < kMostUnsentBytes;
    if (client->gone || (client->asks.empty() && !piece)) continue;
    turn_ = (turn_ + i + 1) % clients_.size();
    return client;
  }
  return nullptr;
}

void WorkerServer::ComputeAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    std::shared_ptr<Client> client;
    changed_.wait(lock, [&] {
      client = NextWithWork();
      return client != nullptr || ending_;
    });
    if (client == nullptr) return;
    if (!client->asks.empty()) {
      ComputeNext(client.get(), &lock);
    } else {
      SendPiece(client.get(), &lock);
    }
    // What could not be sent at once, and what a stop waits for, is the other thread's to see.
    if (client->stream.n_unsent() > 0 || stopping_) wake_.Raise();
  }
}

void WorkerServer::ComputeNext(Client* client, std::unique_lock<std::mutex>* lock) {
  Ask ask = std::move(client->asks.front());
  client->asks.pop_front();
  waiting_bytes_ -= ask.frame.payload.size();
  const Key key{ask.frame.layer, ask.frame.expert};
  const bool expired = Clock::now() > ask.expires;
  if (expired || held_.count(key) == 0) {
    (expired ? counts_.expired : counts_.busy)++;
    client->under_way--;
    client->gone |= !client->stream.Send(Reply(ask.frame, FrameKind::kBusy)).ok();
    return;
  }
  const RowComputer::Learned& recipe = ask.recipe;
  computing_ = key;
  lock->unlock();
  std::vector<float> out;
  const auto began = Clock::now();
  const Status status =
      computer_->Compute(recipe.recipe, static_cast<uint16_t>(ask.frame.expert),
                         static_cast<int>(ask.frame.rows), ask.frame.values(), &out);
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - began);
  lock->lock();
  computing_.first = UINT32_MAX;
  idle_.notify_all();
  client->under_way--;
  if (client->gone) return;
  Frame reply = Reply(ask.frame, FrameKind::kFailed, status.message());
  if (status.ok()) {
    reply = Reply(ask.frame, FrameKind::kAnswer);
    reply.rows = ask.frame.rows;
    reply.columns = static_cast<uint32_t>(recipe.n_out);
    reply.time_us = static_cast<uint32_t>(took.count());
    counts_.answers++;
    counts_.rows += reply.rows;
    counts_.compute_us += reply.time_us;
  }
  const Status sent =
      status.ok() ? client->stream.Send(reply, out.data()) : client->stream.Send(reply);
  client->gone |= !sent.ok();
}

}  // namespace remoe

// Both ends of a connection, as a test has them: one says what the test wants, and the other is the
// program's own. What goes between them are frames over a real socket of this machine, so that what is
// half sent, half closed or too much is as the kernel has it.
//
//     Caller     an engine as a worker sees it
//     RawWorker  a worker as an engine sees it; whoever wants a fault overrides Answer()
//     Serving    a real worker over fake experts, from here on until it goes
//     Engine()   a real engine's end, which has fake experts of its own
//
// Used in a test's thread; Answer() is called in the RawWorker's own thread.
#ifndef REMOE_REMOTE_TESTING_ENDS_H_
#define REMOE_REMOTE_TESTING_ENDS_H_

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "remote/remote_source.h"
#include "remote/testing/fake_experts.h"
#include "remote/worker_server.h"
#include "testing/check.h"

namespace remoe::testing {

constexpr auto kPatience = std::chrono::seconds(120);

// RETURNS: whether it came true within a time that no working program needs.
template <typename Condition>
bool Eventually(const Condition& condition) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

inline void WriteAll(Channel* channel, const std::vector<uint8_t>& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const Result<size_t> sent = channel->Write(bytes.data() + at, bytes.size() - at);
    if (!sent.ok()) return;
    at += sent.value();
    if (sent.value() == 0) {
      if (!channel->Discard().ok()) return;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
}

class Caller {
 public:
  explicit Caller(const Address& address)
      : stream_(std::move(Connect(address, nullptr, 10000).value()), FrameLimits{}) {
    Frame hello;
    hello.payload = SomeWelcome().identity.Bytes();
    Say(hello);
  }
  void Say(const Frame& frame) { CHECK_OK(stream_.Send(frame)); }
  void Say(const Frame& frame, const float* rows) { CHECK_OK(stream_.Send(frame, rows)); }
  // How a layer is computed, under a number.
  void Teach(uint32_t layer, uint32_t number) {
    Frame recipe;
    recipe.kind = FrameKind::kRecipe;
    recipe.layer = layer;
    recipe.recipe = number;
    recipe.payload = {'h', 'o', 'w'};
    Say(recipe);
  }
  Frame Next() {
    const bool came = Eventually([&] {
      const Status status = frames_.empty() ? stream_.Receive(&frames_) : Status::Ok();
      return !frames_.empty() || !status.ok();
    });
    CHECK(came && !frames_.empty());
    if (frames_.empty()) return Frame();
    const Frame first = frames_.front();
    frames_.erase(frames_.begin());
    return first;
  }

 private:
  FrameStream stream_;
  std::vector<Frame> frames_;
};

inline Result<std::unique_ptr<RemoteSource>> Engine(const std::vector<Address>& workers) {
  RemoteSource::Local local;
  local.expert_bytes.assign(kLayers, 3000);
  local.n_experts = kExperts;
  return RemoteSource::Make(workers, nullptr, SomeWelcome().identity, std::make_unique<Fake>(),
                            local, RemoteSource::Settings());
}

class RawWorker {
 public:
  virtual ~RawWorker() { End(); }
  Address address() const { return {"127.0.0.1", listener_->port()}; }
  int n_connections() const { return n_connections_; }
  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  // REQUIRES: called by the destructor of whoever overrides Answer().
  void End() {
    ending_ = true;
    if (thread_.joinable()) thread_.join();
  }

 protected:
  // RETURNS: whether the connection goes on.
  virtual bool Answer(Channel* channel, const Frame& frame) {
    std::vector<uint8_t> said;
    if (frame.kind == FrameKind::kHello) {
      Frame welcome;
      welcome.kind = FrameKind::kWelcome;
      welcome.payload = SomeWelcome().Bytes();
      AppendFrame(welcome, &said);
    } else if (frame.kind == FrameKind::kAsk) {
      const std::vector<float> rows =
          Expected(static_cast<int>(frame.expert), static_cast<int>(frame.rows), frame.values());
      AppendFrame(AnswerTo(frame), rows.data(), &said);
    }
    WriteAll(channel, said);
    return true;
  }
  static Frame AnswerTo(const Frame& ask) {
    Frame answer;
    answer.kind = FrameKind::kAnswer;
    answer.request = ask.request;
    answer.layer = ask.layer;
    answer.expert = ask.expert;
    answer.rows = ask.rows;
    answer.columns = kOut;
    return answer;
  }

 private:
  void Run() {
    while (!ending_) {
      auto channel = listener_->Accept();
      if (channel.ok() && channel.value() != nullptr) {
        n_connections_++;
        Serve(channel.value().get());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  void Serve(Channel* channel) {
    FrameParser parser{FrameLimits{}};
    std::vector<uint8_t> bytes(1 << 16);
    while (!ending_) {
      const Result<size_t> got = channel->Read(bytes.data(), bytes.size());
      if (!got.ok()) return;
      parser.Feed(bytes.data(), got.value());
      Frame frame;
      bool found = false;
      while (parser.Next(&frame, &found).ok() && found) {
        if (!Answer(channel, frame)) return;
      }
      if (got.value() == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  const std::unique_ptr<Listener> listener_ = std::move(ListenTcp({"127.0.0.1", 0}).value());
  std::atomic<bool> ending_{false};
  std::atomic<int> n_connections_{0};
  std::thread thread_;
};

class Serving {
 public:
  Serving(const Welcome& welcome, RowComputer* computer, HeldExperts* held,
          const WorkerServer::Limits& limits = {}) {
    auto made = WorkerServer::Make({"127.0.0.1", 0}, nullptr, welcome, computer, held, limits);
    CHECK_OK(made.status());
    server_ = std::move(made.value());
    thread_ = std::thread([this] { (void)server_->Run(); });
  }
  ~Serving() {
    server_->Stop();
    thread_.join();
  }
  Address address() const { return {"127.0.0.1", server_->port()}; }
  WorkerServer* operator->() const { return server_.get(); }

 private:
  std::unique_ptr<WorkerServer> server_;
  std::thread thread_;
};

}  // namespace remoe::testing

#endif  // REMOE_REMOTE_TESTING_ENDS_H_

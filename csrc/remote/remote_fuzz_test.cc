// A fuzzer of both ends of a connection, over real sockets.
//
//     the worker   strangers and engines send noise, changed frames, frames of any kind with any
//                  fields, and leave in the middle; an honest engine beside them gets every answer
//     the engine   a worker damages, cuts, repeats, delays and invents frames; whatever is posted as
//                  rows is right, and every expert that was asked for ends exactly once
//
//     remote_fuzz_test                          some fixed seeds, as the test suite runs it
//     remote_fuzz_test --seconds 3600 --seed 1  as long as that
#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "remote/remote_source.h"
#include "remote/worker_server.h"
#include "testing/check.h"
#include "testing/fuzz_main.h"

namespace remoe {
namespace {

constexpr int kIn = 8, kOut = 6, kLayers = 2, kExperts = 4;
constexpr auto kLong = std::chrono::seconds(120);
using Clock = std::chrono::steady_clock;

std::vector<float> Expected(int expert, int n_rows, const float* rows) {
  std::vector<float> out(static_cast<size_t>(n_rows) * kOut);
  for (int r = 0; r < n_rows; r++) {
    for (int i = 0; i < kOut; i++) out[r * kOut + i] = 2 * rows[r * kIn + i] + expert;
  }
  return out;
}

// Two numbers and a sum stand for an expert.
class Fake : public RowComputer, public HeldExperts {
 public:
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    if (layer < 0 || layer >= kLayers || recipe != "how")
      return Status(Code::kCorrupt, "no recipe");
    return Learned{layer, "kind", kIn, kOut};
  }
  Status Compute(int, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    *out = Expected(expert, n_rows, rows);
    return Status::Ok();
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    ExpertSums sums;
    sums.whole = 1000 + layer * 10 + expert;
    return sums;
  }
  Status CopyWeights(int, uint16_t, int, uint64_t begin, size_t n, uint8_t* dest) override {
    for (size_t i = 0; i < n; i++) dest[i] = static_cast<uint8_t>(begin + i);
    return Status::Ok();
  }
  uint64_t MatrixBytes(int layer, int matrix) const override {
    return layer >= 0 && layer < kLayers && matrix == 0 ? 3000 : 0;
  }
  std::string Name(int, int) const override { return "an expert"; }
  Status Hold(int, uint16_t) override { return Status::Ok(); }
  void Drop(int, uint16_t) override {}
  bool Exists(uint32_t layer, uint32_t expert) const override {
    return layer < kLayers && expert < kExperts;
  }
  uint64_t ExpertBytes(int) const override { return 3000; }
};

Welcome SomeWelcome() {
  Welcome welcome;
  welcome.identity.engine = "fuzz";
  welcome.credits = 16;
  welcome.max_rows = 16;
  welcome.capacity = 4;
  welcome.sends_weights = true;
  for (uint32_t e = 0; e < 2; e++) welcome.experts.push_back({0, e, 1000 + e});
  return welcome;
}

class Random {
 public:
  explicit Random(uint64_t seed) : random_(seed) {}
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  bool OneIn(uint32_t n) { return Below(n) == 0; }
  std::mt19937_64 random_;
};

// A frame of any kind whose fields are near to what is allowed, or far from it.
Frame AnyFrame(Random* random) {
  const auto number = [&] {
    constexpr uint32_t kNumbers[] = {0, 1, 2, 3, 8, 16, 17, 3000, 65535, 65536, UINT32_MAX};
    return kNumbers[random->Below(std::size(kNumbers))];
  };
  Frame frame;
  frame.kind = static_cast<FrameKind>(1 + random->Below(kLastFrameKind));
  frame.request = number();
  frame.layer = random->OneIn(3) ? number() : random->Below(kLayers);
  frame.expert = random->OneIn(3) ? number() : random->Below(kExperts);
  frame.rows = random->OneIn(3) ? number() : 1 + random->Below(4);
  frame.columns = random->OneIn(3) ? number() : kIn;
  frame.recipe = random->OneIn(3) ? number() : random->Below(2);
  frame.time_us = random->OneIn(2) ? number() : 1000000;
  const bool rows = frame.kind == FrameKind::kAsk || frame.kind == FrameKind::kAnswer;
  size_t n = random->Below(200);
  if (rows && !random->OneIn(4)) n = std::min<uint64_t>(4ull * frame.rows * frame.columns, 1 << 16);
  if (frame.kind == FrameKind::kWish && !random->OneIn(4)) n = n / 12 * 12;
  frame.payload.resize(n);
  for (uint8_t& byte : frame.payload) byte = static_cast<uint8_t>(random->random_());
  if (frame.kind == FrameKind::kRecipe && !random->OneIn(3)) frame.payload = {'h', 'o', 'w'};
  return frame;
}

void Spoil(Random* random, std::vector<uint8_t>* bytes) {
  if (bytes->empty()) return;
  switch (random->Below(4)) {
    case 0:
      (*bytes)[random->Below(bytes->size())] ^= static_cast<uint8_t>(1u << random->Below(8));
      break;
    case 1:
      bytes->resize(random->Below(bytes->size()));
      break;
    case 2:
      bytes->insert(bytes->begin() + random->Below(bytes->size()),
                    static_cast<uint8_t>(random->random_()));
      break;
    default:
      break;
  }
}

void WriteAll(Channel* channel, const std::vector<uint8_t>& bytes) {
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

// --- the worker ---

class Honest {
 public:
  explicit Honest(const Address& address)
      : stream_(std::move(Connect(address, nullptr, 10000).value()), FrameLimits{}) {
    Frame hello;
    hello.payload = SomeWelcome().identity.Bytes();
    CHECK_OK(stream_.Send(hello));
    Frame recipe;
    recipe.kind = FrameKind::kRecipe;
    recipe.payload = {'h', 'o', 'w'};
    CHECK_OK(stream_.Send(recipe));
    CHECK(Next().kind == FrameKind::kWelcome);
  }
  void Ask(Random* random) {
    Frame ask;
    ask.kind = FrameKind::kAsk;
    ask.request = ++request_;
    ask.rows = 1 + random->Below(9);
    ask.columns = kIn;
    ask.time_us = UINT32_MAX;
    std::vector<float> rows(ask.rows * kIn);
    for (float& value : rows) value = static_cast<float>(random->Below(100));
    CHECK_OK(stream_.Send(ask, rows.data()));
    Frame answer = Next();
    while (answer.kind == FrameKind::kHolds) answer = Next();
    // Engines beside it may have had the expert dropped, or the memory for asks may be full.
    if (answer.kind == FrameKind::kFailed || answer.kind == FrameKind::kBusy) return;
    CHECK(answer.kind == FrameKind::kAnswer);
    CHECK_EQ(answer.request, request_);
    const std::vector<float> expected = Expected(0, static_cast<int>(ask.rows), rows.data());
    CHECK_EQ(answer.payload.size(), expected.size() * sizeof(float));
    CHECK(std::memcmp(answer.payload.data(), expected.data(), answer.payload.size()) == 0);
    n_answers_++;
  }
  int n_answers() const { return n_answers_; }

 private:
  Frame Next() {
    const auto until = Clock::now() + kLong;
    while (frames_.empty() && Clock::now() < until && testing::Failures() == 0) {
      CHECK_OK(stream_.Receive(&frames_));
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    CHECK(!frames_.empty());
    if (frames_.empty()) return Frame();
    const Frame first = frames_.front();
    frames_.erase(frames_.begin());
    return first;
  }
  FrameStream stream_;
  std::vector<Frame> frames_;
  uint64_t request_ = 0;
  int n_answers_ = 0;
};

void FuzzWorker(uint64_t seed) {
  Random random(seed);
  Fake fake;
  WorkerServer::Limits limits;
  limits.clients = 6;
  limits.waiting_bytes = 4096;
  limits.columns = 64;
  limits.drain_ms = 200;
  auto made = WorkerServer::Make({"127.0.0.1", 0}, nullptr, SomeWelcome(), &fake,
                                 random.OneIn(2) ? &fake : nullptr, limits);
  CHECK_OK(made.status());
  WorkerServer* server = made.value().get();
  std::thread serving([server] { (void)server->Run(); });
  const Address address{"127.0.0.1", server->port()};
  {
    Honest honest(address);
    for (int round = 0; round < 12 && testing::Failures() == 0; round++) {
      auto stranger = Connect(address, nullptr, 10000);
      if (stranger.ok()) {
        std::vector<uint8_t> bytes;
        if (!random.OneIn(4)) {
          Frame hello;
          hello.payload = SomeWelcome().identity.Bytes();
          AppendFrame(hello, &bytes);
        }
        for (uint32_t n = random.Below(8); n > 0; n--) AppendFrame(AnyFrame(&random), &bytes);
        if (random.OneIn(2)) Spoil(&random, &bytes);
        WriteAll(stranger.value().get(), bytes);
      }
      honest.Ask(&random);
    }
  }
  const auto until = Clock::now() + kLong;
  while (server->counts().clients > 0 && Clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK_EQ(server->counts().clients, 0u);
  server->Stop();
  serving.join();
}

// --- the engine ---

// Answers as a worker does, and spoils what it says once in a while.
class Rogue {
 public:
  explicit Rogue(uint64_t seed) : random_(seed) {
    listener_ = std::move(ListenTcp({"127.0.0.1", 0}).value());
    thread_ = std::thread([this] { Run(); });
  }
  ~Rogue() {
    ending_ = true;
    thread_.join();
  }
  Address address() const { return {"127.0.0.1", listener_->port()}; }

 private:
  void Run() {
    while (!ending_) {
      auto channel = listener_->Accept();
      if (channel.ok() && channel.value() != nullptr) Serve(channel.value().get());
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
  bool Answer(Channel* channel, const Frame& frame) {
    std::vector<uint8_t> said;
    Frame reply;
    reply.request = frame.request;
    reply.layer = frame.layer;
    reply.expert = frame.expert;
    if (frame.kind == FrameKind::kHello) {
      reply.kind = FrameKind::kWelcome;
      reply.payload = SomeWelcome().Bytes();
      AppendFrame(reply, &said);
    } else if (frame.kind == FrameKind::kAsk) {
      reply.kind = FrameKind::kAnswer;
      reply.rows = frame.rows;
      reply.columns = kOut;
      const std::vector<float> rows =
          Expected(static_cast<int>(frame.expert), static_cast<int>(frame.rows), frame.values());
      const bool honest = n_answers_++ < 8 || !random_.OneIn(3);  // the canaries are answered
      if (!honest) return Mischief(channel, reply, rows);
      AppendFrame(reply, rows.data(), &said);
    } else {
      return true;
    }
    WriteAll(channel, said);
    return true;
  }
  // RETURNS: whether the connection goes on.
  bool Mischief(Channel* channel, Frame reply, const std::vector<float>& rows) {
    std::vector<uint8_t> said;
    switch (random_.Below(7)) {
      case 0:  // in other words
        reply.layer ^= random_.Below(2);
        reply.expert ^= 1 + random_.Below(3);
        AppendFrame(reply, rows.data(), &said);
        break;
      case 1:
        AppendFrame(reply, rows.data(), &said);
        AppendFrame(reply, rows.data(), &said);
        break;
      case 2:
        AppendFrame(reply, rows.data(), &said);
        Spoil(&random_, &said);
        break;
      case 3:  // never
        return true;
      case 4:
        AppendFrame(AnyFrame(&random_), &said);
        break;
      case 5:
        reply.kind = random_.OneIn(2) ? FrameKind::kBusy : FrameKind::kFailed;
        AppendFrame(reply, &said);
        break;
      default:
        return false;
    }
    WriteAll(channel, said);
    return true;
  }
  Random random_;
  int n_answers_ = 0;
  std::unique_ptr<Listener> listener_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// The rows of one step.
class StepRows : public ExpertRows {
 public:
  explicit StepRows(Random* random) : n_rows_(1 + static_cast<int>(random->Below(4))) {
    for (int i = 0; i < n_rows_ * kIn; i++) rows_.push_back(static_cast<float>(random->Below(99)));
  }
  int n_rows(uint16_t) const override { return n_rows_; }
  int64_t n_in() const override { return kIn; }
  int64_t n_out() const override { return kOut; }
  void Gather(uint16_t, float* rows) const override {
    std::memcpy(rows, rows_.data(), rows_.size() * sizeof(float));
  }
  void Describe(std::string* recipe) const override { *recipe += "how"; }
  std::vector<float> expected(int expert) const { return Expected(expert, n_rows_, rows_.data()); }

 private:
  const int n_rows_;
  std::vector<float> rows_;
};

void FuzzEngine(uint64_t seed) {
  Random random(seed);
  Rogue rogue(seed + 1);
  RemoteSource::Local local;
  local.expert_bytes.assign(kLayers, 3000);
  local.n_experts = kExperts;
  local.n_slots = 1;
  RemoteSource source({rogue.address()}, nullptr, SomeWelcome().identity, std::make_unique<Fake>(),
                      local, RemoteSource::Settings());
  Arrivals arrivals;
  for (int step = 0; step < 40 && testing::Failures() == 0; step++) {
    const StepRows rows(&random);
    std::vector<Placement> experts(2);
    experts[1].expert = 1;
    std::vector<bool> taken(2);
    Demand demand;
    demand.experts = &experts;
    demand.rows = &rows;
    demand.arrivals = &arrivals;
    demand.ticket = arrivals.Open();
    source.Begin(demand, &taken);
    std::vector<int> ended(2);
    int waiting = static_cast<int>(taken[0]) + static_cast<int>(taken[1]);
    while (waiting > 0) {
      std::vector<Arrival> arrived;
      arrivals.Wait(false, &arrived);
      for (const Arrival& arrival : arrived) {
        CHECK(arrival.expert < 2 && taken[arrival.expert]);
        if (arrival.expert >= 2) return;
        if (arrival.kind == Arrival::Kind::kRows) {
          CHECK(arrival.rows == rows.expected(arrival.expert));
        }
        // Late rows may follow a failure: the step takes what it still wants.
        if (ended[arrival.expert]++ == 0) waiting--;
      }
    }
    arrivals.Close();
    if (step == 0) (void)source.Await(5000);
  }
}

void Once(uint64_t seed) {
  FuzzWorker(seed);
  FuzzEngine(seed);
  if (testing::Failures() > 0) std::fprintf(stderr, "seed %" PRIu64 " failed\n", seed);
}

TEST(NobodyIsHurtByWhatAnotherSends) {
  for (uint64_t seed = 1; seed <= 6 && testing::Failures() == 0; seed++) Once(seed);
}

int RunFor(double seconds, uint64_t seed) {
  const auto start = Clock::now();
  const uint64_t first = seed;
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  while (elapsed() < seconds && testing::Failures() == 0) Once(seed++);
  std::printf("%.0f s: seeds %" PRIu64 " to %" PRIu64 ", %d failures\n", elapsed(), first, seed - 1,
              testing::Failures());
  return testing::Failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace remoe

int main(int argc, char** argv) {
  return remoe::testing::FuzzMain(argc, argv, remoe::RunFor);
}

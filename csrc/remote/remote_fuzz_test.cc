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
#include "remote/testing/ends.h"
#include "testing/check.h"
#include "testing/fuzz_main.h"

namespace remoe {
namespace {

using testing::Expected;
using testing::Fake;
using testing::kExperts;
using testing::kIn;
using testing::kLayers;
using testing::SomeWelcome;
using testing::StepRows;
using testing::WriteAll;
constexpr auto kLong = std::chrono::seconds(120);
using Clock = std::chrono::steady_clock;

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

// --- the worker ---

class Honest {
 public:
  explicit Honest(const Address& address) : caller_(address) {
    CHECK(caller_.Next().kind == FrameKind::kWelcome);
    caller_.Teach(0, 0);
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
    caller_.Say(ask, rows.data());
    Frame answer = caller_.Next();
    while (answer.kind == FrameKind::kHolds) answer = caller_.Next();
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
  testing::Caller caller_;
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
  testing::Serving serving(SomeWelcome(), &fake, random.OneIn(2) ? &fake : nullptr, limits);
  const Address address = serving.address();
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
  while (serving->counts().clients > 0 && Clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK_EQ(serving->counts().clients, 0u);
}

// --- the engine ---

// Answers as a worker does, and spoils what it says once in a while.
class Rogue : public testing::RawWorker {
 public:
  explicit Rogue(uint64_t seed) : random_(seed) { Start(); }
  ~Rogue() override { End(); }

 private:
  bool Answer(Channel* channel, const Frame& frame) override {
    if (frame.kind != FrameKind::kAsk || n_answers_++ < 8 || !random_.OneIn(3)) {
      return RawWorker::Answer(channel, frame);  // the canaries are answered
    }
    const std::vector<float> rows =
        Expected(static_cast<int>(frame.expert), static_cast<int>(frame.rows), frame.values());
    return Mischief(channel, AnswerTo(frame), rows);
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
};

void FuzzEngine(uint64_t seed) {
  Random random(seed);
  Rogue rogue(seed + 1);
  const auto made = testing::Engine({rogue.address()});
  CHECK_OK(made.status());
  RemoteSource& source = *made.value();
  Arrivals arrivals;
  for (int step = 0; step < 40 && testing::Failures() == 0; step++) {
    std::vector<float> values(kIn * (1 + random.Below(4)));
    for (float& value : values) value = static_cast<float>(random.Below(99));
    const StepRows rows(values);
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

// What a worker promises to engines that change their minds, come too many at a time, or wish for what
// storage does not give.
#include "remote/worker_server.h"

#include <algorithm>
#include <condition_variable>

#include "remote/remote_source.h"
#include "remote/testing/ends.h"

namespace remoe {
namespace {

using testing::Caller;
using testing::Eventually;
using testing::Fake;
using testing::kIn;
using testing::Serving;
using testing::SomeWelcome;

Frame Ask(uint64_t request) {
  Frame ask;
  ask.kind = FrameKind::kAsk;
  ask.request = request;
  ask.rows = 1;
  ask.columns = kIn;
  ask.time_us = UINT32_MAX;
  return ask;
}

// Computes nothing before it is let, and knows by which recipes it did.
class Held : public Fake {
 public:
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    std::unique_lock<std::mutex> lock(mutex_);
    opened_.wait(lock, [&] { return open_; });
    recipes.push_back(recipe);
    return Fake::Compute(recipe, expert, n_rows, rows, out);
  }
  void Open() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      open_ = true;
    }
    opened_.notify_all();
  }
  std::vector<int> recipes;

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

TEST(ANumberThatMeansAnotherRecipeLaterMeansTheFirstOneForWhatWasAsked) {
  Held held;
  {
    Serving serving(SomeWelcome(), &held, nullptr);
    Caller caller(serving.address());
    CHECK(caller.Next().kind == FrameKind::kWelcome);
    const std::vector<float> rows(kIn);
    caller.Teach(0, 7);
    for (const uint64_t request : {1, 2, 3}) {
      Frame ask = Ask(request);
      ask.recipe = 7;
      if (request == 3) caller.Teach(1, 7);
      caller.Say(ask, rows.data());
    }
    // The third one names a layer that its recipe is not of any longer: so the worker has heard.
    const Frame third = caller.Next();
    CHECK(third.kind == FrameKind::kFailed && third.request == 3);
    held.Open();
    for (int i = 0; i < 2; i++) CHECK(caller.Next().kind == FrameKind::kAnswer);
  }
  CHECK(held.recipes == (std::vector<int>{0, 0}));
}

TEST(AWorkerThatIsFullIsTriedAgain) {
  Fake fake;
  WorkerServer::Limits limits;
  limits.clients = 1;
  Serving serving(SomeWelcome(), &fake, nullptr, limits);
  auto first = std::make_unique<Caller>(serving.address());
  CHECK(first->Next().kind == FrameKind::kWelcome);
  const auto made = testing::Engine({serving.address()});
  CHECK_OK(made.status());
  const RemoteSource& source = *made.value();
  CHECK(Eventually([&] { return serving->counts().refused > 0; }));
  CHECK(Eventually([&] { return !source.peers()[0].peer.why.empty(); }));
  CHECK_EQ(source.peers()[0].peer.state, std::string("connecting"));
  first.reset();
  CHECK(Eventually([&] { return source.peers()[0].peer.state == "serving"; }));
}

TEST(FramesThatNeverEndDoNotTakeAllMemory) {
  Fake fake;
  WorkerServer::Limits limits;
  limits.waiting_bytes = 16 << 10;
  Serving serving(SomeWelcome(), &fake, nullptr, limits);
  Caller honest(serving.address());
  CHECK(honest.Next().kind == FrameKind::kWelcome);
  Frame hello, wish;
  hello.payload = SomeWelcome().identity.Bytes();
  wish.kind = FrameKind::kWish;
  wish.payload.resize(60000);
  std::vector<uint8_t> bytes;
  AppendFrame(hello, &bytes);
  AppendFrame(wish, &bytes);
  bytes.pop_back();
  std::vector<std::unique_ptr<Channel>> hoarders;
  for (int i = 0; i < 3; i++) {
    hoarders.push_back(std::move(Connect(serving.address(), nullptr, 10000).value()));
    testing::WriteAll(hoarders.back().get(), bytes);
  }
  // Any two exceed it together, so that one is left.
  CHECK(Eventually([&] {
    return std::count_if(hoarders.begin(), hoarders.end(),
                         [](const auto& channel) { return !channel->Discard().ok(); }) == 2;
  }));
  CHECK_EQ(serving->counts().clients, 2u);
  honest.Teach(0, 0);
  honest.Say(Ask(1), std::vector<float>(kIn).data());
  CHECK(honest.Next().kind == FrameKind::kAnswer);
}

TEST(WhoKnocksAgainAndAgainFillsNoLog) {
  Refusals refusals;
  Refusals::Clock::time_point now{};
  std::vector<std::string> told;
  constexpr int kTimes = 1000;
  for (int i = 0; i < kTimes; i++) {
    const std::string line = refusals.Line("no greeting", now);
    if (!line.empty()) told.push_back(line);
    now += std::chrono::seconds(1);
  }
  CHECK_EQ(told[0], std::string("an engine was refused: no greeting"));
  CHECK(told.size() > kTimes / 60 && told.size() <= kTimes / 60 + Seldom::kFew);
  CHECK(told.back().find(" (59 others since the last line)") != std::string::npos);
}

// Storage fails for one expert.
class Damaged : public Fake {
 public:
  Status Hold(int, uint16_t expert) override {
    if (expert != 2) return Status::Ok();
    n_tried++;
    return Status(Code::kIo, "a bad sector");
  }
  std::atomic<int> n_tried{0};
};

TEST(AnExpertThatStorageDoesNotGiveStandsInNobodysWay) {
  Damaged damaged;
  Serving serving(SomeWelcome(), &damaged, &damaged);
  Caller caller(serving.address());
  CHECK(caller.Next().kind == FrameKind::kWelcome);
  Frame wish;
  wish.kind = FrameKind::kWish;
  wish.payload = WishBytes({{0, 2, 1.0f}, {0, 3, 0.5f}});
  caller.Say(wish);
  CHECK(Eventually([&] { return serving->counts().experts == 3; }));
  const Frame holds = caller.Next();
  CHECK(holds.kind == FrameKind::kHolds);
  const Result<HeldChange> change = HeldChange::Parse(holds.payload);
  CHECK(change.ok() && change.value().added.size() == 1 && change.value().added[0].expert == 3);
  CHECK_EQ(damaged.n_tried.load(), 1);
  const std::vector<std::string> lines = serving->TakeLines();
  CHECK(lines.size() == 1 && lines[0].find("a bad sector") != std::string::npos);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

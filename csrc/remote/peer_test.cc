// What an engine hears of a worker, and what its user hears of one that comes and goes.
#include "remote/peer.h"

#include "remote/remote_source.h"
#include "remote/testing/ends.h"

namespace remoe {
namespace {

using testing::Eventually;
using testing::RawWorker;
using testing::SomeWelcome;

std::unique_ptr<RemoteSource> EngineOf(const RawWorker& worker) {
  auto made = testing::Engine({worker.address()});
  CHECK_OK(made.status());
  return std::move(made.value());
}

// Says what it welcomes with, and more in the same breath.
class Hasty : public RawWorker {
 public:
  explicit Hasty(std::vector<Frame> frames) : frames_(std::move(frames)) { Start(); }
  ~Hasty() override { End(); }

 private:
  bool Answer(Channel* channel, const Frame& frame) override {
    if (frame.kind != FrameKind::kHello) return RawWorker::Answer(channel, frame);
    std::vector<uint8_t> said;
    for (const Frame& each : frames_) AppendFrame(each, &said);
    testing::WriteAll(channel, said);
    return true;
  }
  const std::vector<Frame> frames_;
};

Frame WelcomeFrame(const Welcome& welcome) {
  Frame frame;
  frame.kind = FrameKind::kWelcome;
  frame.payload = welcome.Bytes();
  return frame;
}

TEST(WhatComesWithTheWelcomeIsHeard) {
  HeldChange change;
  change.dropped.push_back({0, 1, 1001});
  Frame holds;
  holds.kind = FrameKind::kHolds;
  holds.payload = change.Bytes();
  Hasty hasty({WelcomeFrame(SomeWelcome()), holds});
  const auto source = EngineOf(hasty);
  CHECK(source->Await(120000));
  CHECK_EQ(source->peers()[0].peer.state, std::string("serving"));
  CHECK_EQ(source->peers()[0].peer.n_experts, 1);
}

TEST(NumbersThatNoWorkerHasAreDamage) {
  Welcome welcome = SomeWelcome();
  welcome.capacity = UINT32_MAX;
  Hasty hasty({WelcomeFrame(welcome)});
  const auto source = EngineOf(hasty);
  CHECK(source->Await(120000));
  CHECK_EQ(source->peers()[0].peer.state, std::string("connecting"));
  CHECK(source->peers()[0].peer.why.find("damaged welcome") != std::string::npos);
}

TEST(WhatAPeerSaysIsOneLine) {
  Frame refused;
  refused.kind = FrameKind::kRefused;
  refused.payload.assign(100000, 'x');
  refused.payload[3] = '\n';
  refused.payload[4] = 0x1b;
  Hasty hasty({refused});
  const auto source = EngineOf(hasty);
  CHECK(source->Await(120000));
  const std::vector<PeerLine> lines = source->TakeLines();
  CHECK_EQ(lines.size(), 1u);
  CHECK(lines[0].text.find("xxx  xxx") != std::string::npos && lines[0].text.size() < 1000);
}

// Welcomes, and is gone.
class Flapping : public RawWorker {
 public:
  Flapping() { Start(); }
  ~Flapping() override { End(); }

 private:
  bool Answer(Channel* channel, const Frame& frame) override {
    (void)RawWorker::Answer(channel, frame);
    return false;
  }
};

TEST(APeerThatComesAndGoesIsOneLine) {
  Flapping flapping;
  const auto source = EngineOf(flapping);
  CHECK(Eventually([&] { return flapping.n_connections() >= 4; }));
  const std::vector<PeerLine> lines = source->TakeLines();
  CHECK_EQ(lines.size(), 1u);
  CHECK(lines[0].text.find("; it was lost ") != std::string::npos);
}

TEST(WhoComesAndGoesIsToldOfOnceInAWhile) {
  Comings comings;
  Comings::Clock::time_point now{};
  int n_told = 0;
  constexpr int kTimes = 1000;
  for (int i = 0; i < kTimes; i++) {
    comings.Came();
    n_told += comings.Due(now) ? 1 : 0;
    comings.Went(true);
    n_told += comings.Due(now) ? 1 : 0;
    CHECK(!comings.Due(now));
    now += std::chrono::seconds(1);
  }
  CHECK_EQ(comings.n_lost(), uint64_t{kTimes});
  CHECK(n_told >= kTimes / 60 && n_told <= kTimes / 60 + static_cast<int>(Comings::kFew) + 1);
  // How it stands in the end is told, later.
  now += Comings::kPause;
  CHECK(comings.Due(now));
  CHECK(!comings.Due(now + Comings::kPause));
}

TEST(WhoIsNotThereIsToldOfOnce) {
  Comings comings;
  comings.Went(false);
  CHECK(comings.Due({}));
  comings.Went(false);
  CHECK(!comings.Due({}));
  comings.Came();
  CHECK(comings.Due({}));
}

TEST(LinesThatNobodyTakesDoNotGrow) {
  PeerLines lines;
  for (int i = 0; i < 3; i++) lines.Add({"a", std::to_string(i)});
  lines.Add({"b", "3"});
  lines.Add({"a", "4"});
  const std::vector<PeerLine> taken = lines.Take();
  CHECK_EQ(taken.size(), 2u);
  CHECK(taken[0].text == "3" && taken[1].text == "4");
  CHECK(lines.Take().empty());
  for (size_t i = 0; i < 3 * PeerLines::kMost; i++) lines.Add({std::to_string(i), ""});
  CHECK_EQ(lines.Take().size(), PeerLines::kMost);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Frames and handshakes: what is written is read, and nothing else is believed.
#include <random>

#include "testing/check.h"
#include "wire/checksum.h"
#include "wire/frame.h"
#include "wire/handshake.h"

namespace remoe {
namespace {

Frame AskFrame(uint32_t rows, uint32_t columns) {
  Frame frame;
  frame.kind = FrameKind::kAsk;
  frame.request = 77;
  frame.layer = 3;
  frame.expert = 9;
  frame.rows = rows;
  frame.columns = columns;
  frame.recipe = 2;
  frame.time_us = 1500;
  return frame;
}

std::vector<uint8_t> AskBytes(uint32_t rows, uint32_t columns) {
  std::vector<float> values(size_t{rows} * columns);
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i) * 0.5f;
  std::vector<uint8_t> bytes;
  AppendFrame(AskFrame(rows, columns), values.data(), &bytes);
  return bytes;
}

Status ParseAll(FrameParser* parser, const std::vector<uint8_t>& bytes,
                std::vector<Frame>* frames) {
  parser->Feed(bytes.data(), bytes.size());
  while (true) {
    Frame frame;
    bool found = false;
    const Status status = parser->Next(&frame, &found);
    if (!status.ok() || !found) return status;
    frames->push_back(frame);
  }
}

TEST(FramesComeInPiecesOfAnySize) {
  std::vector<uint8_t> bytes = AskBytes(3, 5);
  Frame text;
  text.kind = FrameKind::kRefused;
  text.payload = {'n', 'o'};
  AppendFrame(text, &bytes);
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{56}, bytes.size()}) {
    FrameParser parser(FrameLimits{});
    std::vector<Frame> frames;
    for (size_t at = 0; at < bytes.size(); at += piece) {
      const size_t end = std::min(bytes.size(), at + piece);
      CHECK_OK(ParseAll(&parser, {bytes.begin() + at, bytes.begin() + end}, &frames));
    }
    CHECK_EQ(frames.size(), 2u);
    CHECK(frames[0].kind == FrameKind::kAsk);
    CHECK_EQ(frames[0].request, 77u);
    CHECK_EQ(frames[0].layer, 3u);
    CHECK_EQ(frames[0].expert, 9u);
    CHECK_EQ(frames[0].recipe, 2u);
    CHECK_EQ(frames[0].time_us, 1500u);
    CHECK_EQ(frames[0].values()[14], 7.0f);
    CHECK_EQ(frames[1].text(), "no");
  }
}

TEST(EveryFlippedBitIsSeen) {
  const std::vector<uint8_t> whole = AskBytes(2, 6);
  for (size_t bit = 0; bit < whole.size() * 8; bit++) {
    std::vector<uint8_t> bytes = whole;
    bytes[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    FrameParser parser(FrameLimits{});
    std::vector<Frame> frames;
    const Status status = ParseAll(&parser, bytes, &frames);
    CHECK_EQ(frames.size(), 0u);
    CHECK(status.code() == (bit / 16 == 2 ? Code::kNotSupported : Code::kCorrupt));
    std::vector<Frame> after;  // nothing is believed any more
    CHECK(!ParseAll(&parser, whole, &after).ok());
    CHECK_EQ(after.size(), 0u);
  }
}

TEST(ACutFrameIsWaitedFor) {
  const std::vector<uint8_t> whole = AskBytes(2, 6);
  for (size_t n = 0; n < whole.size(); n++) {
    FrameParser parser(FrameLimits{});
    std::vector<Frame> frames;
    CHECK_OK(ParseAll(&parser, {whole.begin(), whole.begin() + n}, &frames));
    CHECK_EQ(frames.size(), 0u);
    CHECK_OK(ParseAll(&parser, {whole.begin() + n, whole.end()}, &frames));
    CHECK_EQ(frames.size(), 1u);
  }
}

TEST(SizesAboveTheLimitsAreRefusedFromTheHeaderAlone) {
  FrameLimits limits;
  limits.rows = 64;
  limits.columns = 1024;
  limits.payload_bytes = 1 << 20;
  for (const auto& [rows, columns] : std::vector<std::pair<uint32_t, uint32_t>>{
           {65, 4}, {1, 1025}, {0, 4}, {4, 0}, {1u << 31, 1u << 31}}) {
    std::vector<uint8_t> bytes;
    Frame frame = AskFrame(rows, columns);
    AppendFrame(frame, &bytes);  // without its rows
    FrameParser parser(limits);
    std::vector<Frame> frames;
    CHECK(ParseAll(&parser, bytes, &frames).code() == Code::kCorrupt);
  }
  std::vector<uint8_t> bytes = AskBytes(1, 4);
  const uint64_t claimed = uint64_t{1} << 62;
  std::memcpy(bytes.data() + 40, &claimed, sizeof(claimed));
  FrameParser parser(limits);
  std::vector<Frame> frames;
  CHECK(ParseAll(&parser, bytes, &frames).code() == Code::kCorrupt);
}

TEST(NoiseIsNoFrame) {
  std::mt19937 random(5);
  const std::vector<uint8_t> whole = AskBytes(4, 8);
  for (int round = 0; round < 20000; round++) {
    std::vector<uint8_t> bytes = whole;
    const int n_changes = 1 + static_cast<int>(random() % 6);
    for (int i = 0; i < n_changes; i++)
      bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
    if (random() % 3 == 0) bytes.resize(random() % bytes.size());
    if (random() % 5 == 0) bytes.insert(bytes.begin(), static_cast<uint8_t>(random()));
    FrameParser parser(FrameLimits{});
    std::vector<Frame> frames;
    (void)ParseAll(&parser, bytes, &frames);
    if (!frames.empty()) CHECK(std::equal(whole.begin(), whole.end(), bytes.begin()));
  }
}

Identity SomeIdentity() {
  Identity identity;
  identity.engine = "0.2";
  identity.llama_build = "ggml 1";
  identity.architecture = "x86-64";
  identity.cpu_features = "AVX2=1";
  identity.model = "abc";
  identity.layout = "l";
  return identity;
}

TEST(AnotherIdentityIsNamed) {
  const Identity ours = SomeIdentity();
  CHECK_EQ(WhyOther(ours, ours), "");
  Identity its = ours;
  its.model = "def";
  CHECK_EQ(WhyOther(ours, its), "its model is 'def', ours is 'abc'");
  its = ours;
  its.repacked = true;
  CHECK(WhyOther(ours, its).find("--repack") != std::string::npos);
  its = ours;
  its.cpu_features = "AVX2=0";
  CHECK(WhyOther(ours, its).find("processor features") != std::string::npos);
}

TEST(HandshakesSurviveTheWireAndNothingElseDoes) {
  Welcome welcome;
  welcome.identity = SomeIdentity();
  welcome.credits = 32;
  welcome.max_rows = 64;
  for (uint32_t e = 0; e < 5; e++) welcome.experts.push_back({1, e, e * 11});
  const std::vector<uint8_t> bytes = welcome.Bytes();
  const Result<Welcome> parsed = Welcome::Parse(bytes);
  CHECK_OK(parsed.status());
  CHECK_EQ(WhyOther(welcome.identity, parsed.value().identity), "");
  CHECK_EQ(parsed.value().experts.size(), 5u);
  CHECK_EQ(parsed.value().experts[4].sum, 44u);
  for (size_t n = 0; n < bytes.size(); n++) {
    CHECK(!Welcome::Parse({bytes.begin(), bytes.begin() + n}).ok());
  }
  const std::vector<uint8_t> hello = welcome.identity.Bytes();
  CHECK_OK(Identity::Parse(hello).status());
  for (size_t n = 0; n < hello.size(); n++) {
    CHECK(!Identity::Parse({hello.begin(), hello.begin() + n}).ok());
  }
  std::mt19937 random(6);
  for (int round = 0; round < 20000; round++) {
    std::vector<uint8_t> noisy = bytes;
    noisy[random() % noisy.size()] = static_cast<uint8_t>(random());
    noisy[random() % noisy.size()] = static_cast<uint8_t>(random());
    (void)Welcome::Parse(noisy);  // under the sanitizers: no byte too far, no huge allocation
    (void)Identity::Parse(noisy);
  }
}

TEST(ASumDoesNotDependOnThePieces) {
  std::vector<uint8_t> bytes(100);
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>(i * 7);
  Checksum64 whole;
  whole.Add(bytes.data(), bytes.size());
  for (size_t cut = 0; cut <= bytes.size(); cut++) {
    Checksum64 parts;
    parts.Add(bytes.data(), cut);
    parts.Add(bytes.data() + cut, bytes.size() - cut);
    CHECK_EQ(parts.sum(), whole.sum());
  }
  Checksum64 longer;
  bytes.push_back(0);
  longer.Add(bytes.data(), bytes.size());
  CHECK(longer.sum() != whole.sum());
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

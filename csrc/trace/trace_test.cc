#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "base/prob8.h"
#include "testing/check.h"
#include "trace/trace_file.h"
#include "trace/trace_writer.h"

namespace remoe {
namespace {

std::string TemporaryPath() {
  const char* folder = std::getenv("TMPDIR");
  return std::string(folder ? folder : "/tmp") + "/remoe_trace_test." + std::to_string(getpid());
}

std::vector<uint8_t> Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Two layers of five experts, top-2: a prefill step of two tokens, then a decode step.
std::vector<uint8_t> Recorded() {
  const std::string path = TemporaryPath();
  auto made = TraceWriter::Create(path, {2, 5, 2, "f", "{\"a\": 1}"});
  CHECK_OK(made.status());
  TraceWriter& writer = *made.value();
  const uint16_t wide[] = {3, 1, 0}, ids[] = {3, 1, 1, 0}, narrow[] = {4, 2};
  const float probs[] = {0.5f, 0.25f, 0.125f, 0, 1};
  for (int layer = 0; layer < 2; layer++) {
    TraceEvent event;
    event.layer = layer;
    event.decode = false;
    event.n_tokens = 2;
    event.experts = wide;
    event.n = 3;
    event.ids = ids;
    CHECK_OK(writer.Append(event));
  }
  for (int layer = 0; layer < 2; layer++) {
    TraceEvent event;
    event.layer = layer;
    event.step = 1;
    event.experts = narrow;
    event.n = 2;
    event.ids = narrow;  // the same as the experts: not stored
    event.probs = probs;
    event.n_prob_tokens = 1;
    CHECK_OK(writer.Append(event));
  }
  CHECK_OK(writer.Finish());
  CHECK_EQ(access((path + ".part").c_str(), F_OK), -1);
  std::vector<uint8_t> bytes = Bytes(path);
  std::remove(path.c_str());
  return bytes;
}

TEST(ComesBackAsWritten) {
  const std::vector<uint8_t> bytes = Recorded();
  const auto parsed = ParseTrace(bytes.data(), bytes.size(), "t");
  CHECK_OK(parsed.status());
  if (!parsed.ok()) return;
  const TraceIndex& index = parsed.value();
  CHECK_EQ(index.header.fingerprint, std::string("f"));
  CHECK_EQ(index.header.meta, std::string("{\"a\": 1}"));
  CHECK(index.offsets == (std::vector<int64_t>{0, 3, 6, 8, 10}));
  CHECK(index.experts == (std::vector<uint16_t>{3, 1, 0, 3, 1, 0, 4, 2, 4, 2}));
  CHECK_EQ(index.ids_at[2], int64_t{-1});
  CHECK_EQ(index.probs_at[0], int64_t{-1});
  CHECK_EQ(FromProb8(bytes[index.probs_at[3] + 1]), 0.25f);
  uint16_t id;
  std::memcpy(&id, bytes.data() + index.ids_at[1] + 6, 2);
  CHECK_EQ(id, 0);
}

TEST(EveryTruncationIsRefused) {
  const std::vector<uint8_t> bytes = Recorded();
  for (size_t size = 0; size < bytes.size(); size++) {
    // A copy of its own, so that a sanitizer sees a read past it.
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + size);
    CHECK(ParseTrace(cut.data(), cut.size(), "t").status().code() == Code::kCorrupt);
  }
}

TEST(RandomDamageNeverReadsOutside) {
  const std::vector<uint8_t> bytes = Recorded();
  std::mt19937 random(11);
  for (int i = 0; i < 20000; i++) {
    std::vector<uint8_t> damaged = bytes;
    for (unsigned k = 0; k <= random() % 3; k++) {
      damaged[random() % damaged.size()] = static_cast<uint8_t>(random());
    }
    const auto parsed = ParseTrace(damaged.data(), damaged.size(), "t");
    if (!parsed.ok()) continue;
    const TraceIndex& index = parsed.value();
    for (size_t event = 0; event < index.step.size(); event++) {
      if (index.probs_at[event] < 0) continue;
      CHECK(index.probs_at[event] + int64_t{5} <= static_cast<int64_t>(damaged.size()));
    }
  }
}

TEST(AStepCutShortIsForgotten) {
  const std::string path = TemporaryPath();
  auto made = TraceWriter::Create(path, {3, 5, 2, "", "{}"});
  CHECK_OK(made.status());
  TraceWriter& writer = *made.value();
  const uint16_t experts[] = {4, 2};
  for (int64_t step = 0; step < 2; step++) {
    for (int layer = 0; layer < 3 - static_cast<int>(step); layer++) {
      TraceEvent event;
      event.layer = layer;
      event.step = step;
      event.experts = experts;
      event.n = 2;
      CHECK_OK(writer.Append(event));
    }
  }
  CHECK_EQ(writer.n_events(), uint64_t{5});
  writer.DropStep();
  writer.DropStep();  // only once
  CHECK_EQ(writer.n_events(), uint64_t{3});
  CHECK_OK(writer.Finish());
  CHECK(writer.finished());
  CHECK(!writer.Append(TraceEvent()).ok());
  const std::vector<uint8_t> bytes = Bytes(path);
  std::remove(path.c_str());
  const auto parsed = ParseTrace(bytes.data(), bytes.size(), "t");
  CHECK_OK(parsed.status());
  CHECK_EQ(parsed.value().step.size(), size_t{3});
}

TEST(AFullDiskKeepsTheStepsBefore) {
  // Writing past the limit gives EFBIG, as a full disk gives ENOSPC.
  const std::string path = TemporaryPath();
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit limit = before;
  limit.rlim_cur = 3 << 20;
  auto made = TraceWriter::Create(path, {1, 1000, 2, "", "{}"});
  CHECK_OK(made.status());
  TraceWriter& writer = *made.value();
  setrlimit(RLIMIT_FSIZE, &limit);
  const uint16_t experts[] = {4, 2};
  const std::vector<float> probs(1000, 0.5f);
  Status status;
  for (int64_t step = 0; status.ok() && step < 10000; step++) {
    TraceEvent event;
    event.step = step;
    event.experts = experts;
    event.n = 2;
    event.probs = probs.data();
    event.n_prob_tokens = 1;
    status = writer.Append(event);
  }
  CHECK(status.code() == Code::kIo);
  CHECK(writer.failure().code() == Code::kIo);
  const Status finished = writer.Finish();
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(finished.message().find("holds the steps before") != std::string::npos);
  const std::vector<uint8_t> bytes = Bytes(path);
  std::remove(path.c_str());
  const auto parsed = ParseTrace(bytes.data(), bytes.size(), "t");
  CHECK_OK(parsed.status());
  CHECK_EQ(parsed.value().step.size(), static_cast<size_t>(writer.n_events()));
  CHECK(writer.n_events() > 1000);
}

TEST(AFullDiskIsAnError) {
  if (access("/dev/full", W_OK) != 0) return;
  const std::string path = TemporaryPath();
  CHECK_EQ(symlink("/dev/full", (path + ".part").c_str()), 0);
  auto made = TraceWriter::Create(path, {1, 4, 1, "", "{}"});
  CHECK_OK(made.status());
  const Status status = made.value()->Finish();
  CHECK(status.code() == Code::kIo);
  CHECK(status.message().find(".part") != std::string::npos);
  CHECK(made.value()->Finish().code() == Code::kIo);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

#include "storage/probe.h"

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "testing/check.h"

namespace remoe {
namespace {

class TempFile {
 public:
  explicit TempFile(size_t n_bytes) {
    char path[] = "probe_test_XXXXXX";
    const int fd = ::mkstemp(path);
    const std::vector<char> bytes(n_bytes, 'x');
    if (::write(fd, bytes.data(), n_bytes) != static_cast<ssize_t>(n_bytes)) std::abort();
    ::close(fd);
    path_ = path;
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

ProbePoint Point(uint64_t block_bytes, int depth, uint64_t n_reads) {
  ProbePoint point;
  point.block_bytes = block_bytes;
  point.depth = depth;
  point.n_reads = n_reads;
  point.seconds = 1;
  return point;
}

ProbeOptions Short() {
  ProbeOptions options;
  options.seconds = 0.05;
  options.block_bytes = {4096, 65536};
  options.depths = {1, 4};
  return options;
}

TEST(TheSmallestDepthWithinFivePercentIsPicked) {
  const std::vector<ProbePoint> points = {
      Point(4096, 1, 10),  Point(4096, 32, 900), Point(65536, 1, 50), Point(65536, 2, 94),
      Point(65536, 4, 96), Point(65536, 8, 100), Point(65536, 16, 99)};
  CHECK_EQ(PickDepth(points, 65536).depth, 4);
  CHECK_EQ(PickDepth(points, 1 << 20).depth, 4);  // 64 KiB is the nearest
  CHECK_EQ(PickDepth(points, 8192).depth, 32);    // 4 KiB is
  CHECK_EQ(PickDepth(points, 8192).block_bytes, uint64_t{4096});
}

TEST(EveryPointOfAShortCurveIsMeasured) {
  const TempFile file(1 << 20);
  const auto result = Probe(file.path(), Short());
  CHECK_OK(result.status());
  if (!result.ok()) return;
  CHECK(!result.value().backend.empty());
  CHECK(!result.value().points.empty());
  for (const ProbePoint& point : result.value().points) {
    CHECK(point.n_reads >= static_cast<uint64_t>(point.depth));
    CHECK(point.seconds > 0);
  }
  CHECK(result.value().pick.n_reads > 0);
}

TEST(OnlyTheRangesGivenAreRead) {
  const TempFile file(1 << 20);
  ProbeOptions options = Short();
  options.ranges = {{200000, 300000}, {600000, 5000}};
  // Whatever touches the rest fails.
  options.faults.range_file = 0;
  options.faults.range_offset = 0;
  options.faults.range_bytes = 200000;
  CHECK_OK(Probe(file.path(), options).status());
  options.faults.range_offset = 500000;
  options.faults.range_bytes = 100000;
  CHECK_OK(Probe(file.path(), options).status());
  options.faults.range_offset = 605000;
  options.faults.range_bytes = 1 << 20;
  CHECK_OK(Probe(file.path(), options).status());
  options.faults.range_offset = 200000;
  options.faults.range_bytes = 300000;
  CHECK(Probe(file.path(), options).status().code() == Code::kIo);
}

TEST(TheQuickFormReadsOneSize) {
  const TempFile file(1 << 20);
  const ProbeOptions options = QuickProbe({{0, 1 << 20}}, 100000);
  CHECK_EQ(options.block_bytes.size(), size_t{1});
  const auto result = Probe(file.path(), options);
  CHECK_OK(result.status());
  if (!result.ok()) return;
  CHECK_EQ(result.value().pick.block_bytes, uint64_t{24 * 4096});
}

TEST(WhatCannotBeMeasuredIsSaid) {
  const TempFile file(1 << 20), tiny(65535);
  CHECK(Probe(tiny.path(), Short()).status().message().find("too short") != std::string::npos);
  CHECK(Probe("no/such/file", Short()).status().message().find("no/such/file") !=
        std::string::npos);
  CHECK(Probe(".", Short()).status().code() == Code::kInvalidArgument);
  ProbeOptions options = Short();
  options.ranges = {{0, 1000}};
  CHECK(Probe(file.path(), options).status().code() == Code::kInvalidArgument);
  options.ranges = {{1 << 20, 4096}};
  CHECK(Probe(file.path(), options).status().code() == Code::kInvalidArgument);
  options = Short();
  options.block_bytes = {5000};
  CHECK(Probe(file.path(), options).status().code() == Code::kInvalidArgument);
  options = Short();
  options.depths = {0};
  CHECK(Probe(file.path(), options).status().code() == Code::kInvalidArgument);
  options = Short();
  options.seconds = 0;
  CHECK(Probe(file.path(), options).status().code() == Code::kInvalidArgument);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

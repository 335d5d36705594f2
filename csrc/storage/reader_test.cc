#include "storage/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "storage/testing/reads.h"
#include "testing/check.h"

namespace remoe {
namespace {

TEST(OddOffsetsAndTailsArriveByteForByte) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    for (const int depth : {1, 3, 16}) {
      for (const uint64_t piece : {uint64_t{4096}, uint64_t{65536}, kPiece}) {
        ReaderOptions options = OptionsOf(mode);
        options.depth = depth;
        options.piece_bytes = piece;
        const auto reader = Open({a.path(), b.path()}, options);
        CHECK_EQ(reader->direct(), mode.direct);
        CHECK_EQ(reader->depth(), depth);
        CHECK_EQ(std::string(reader->backend()), std::string(mode.backend));
        CheckAllRight(*reader, OddRequests());
        uint64_t bytes = 0;
        for (const Request& request : OddRequests()) bytes += request.n_bytes;
        const ReaderCounts counts = reader->counts();
        CHECK_EQ(counts.reads, OddRequests().size());
        CHECK_EQ(counts.bytes, bytes);
        CHECK_EQ(counts.errors, uint64_t{0});
        CHECK(counts.device_bytes >= bytes);
      }
    }
  }
}

TEST(NeighboursTravelTogetherWhereTheyMeetAtAPage) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    const auto reader = Open({a.path(), b.path()}, OptionsOf(mode));
    // Given in any order, four spans in a row are one operation; the same spans of two files are
    // two.
    const std::vector<Request> row = {
        {0, 16384, 8000}, {0, 100, 3996}, {0, 8192, 8192}, {0, 4096, 4096}};
    CheckAllRight(*reader, row);
    CHECK_EQ(reader->counts().operations, uint64_t{1});
    CheckAllRight(*reader, {{0, 0, 4096}, {1, 4096, 4096}});
    CHECK_EQ(reader->counts().operations, uint64_t{3});
    // A joint inside a page: both sides own that page, so they cannot share it.
    CheckAllRight(*reader, {{0, 0, 5000}, {0, 5000, 5000}});
    CHECK_EQ(reader->counts().operations, uint64_t{5});
    // Never longer than a piece.
    CheckAllRight(*reader, {{0, 0, kPiece}, {0, kPiece, kPiece}});
    CHECK_EQ(reader->counts().operations, uint64_t{7});
    // A long read is shared out.
    CheckAllRight(*reader, {{0, 0, 4 * kPiece}});
    CHECK_EQ(reader->counts().operations, uint64_t{11});
  }
}

TEST(DirectReadsMoveWholePagesAndNoMore) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    const auto reader = Open({a.path()}, OptionsOf(mode));
    CheckAllRight(*reader, {{0, 4095, 2}});
    CHECK_EQ(reader->counts().bytes, uint64_t{2});
    CHECK_EQ(reader->counts().device_bytes, uint64_t{mode.direct ? 8192u : 2u});
  }
}

TEST(ManySubmittersEachGetTheirOwn) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    ReaderOptions options = OptionsOf(mode);
    options.piece_bytes = 65536;
    const auto reader = Open({a.path(), b.path()}, options);
    std::atomic<int> n_wrong{0};
    std::vector<std::thread> submitters;
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      submitters.emplace_back([&, seed] {
        uint64_t x = seed * 0x9E3779B97F4A7C15u;
        const auto random = [&x](uint64_t n) {
          x ^= x << 13, x ^= x >> 7, x ^= x << 17;
          return x % n;
        };
        for (int round = 0; round < 20; ++round) {
          std::vector<Request> requests;
          for (int i = 0; i < 8; ++i) {
            const uint64_t n_bytes = 1 + random(80000);
            requests.push_back(
                {static_cast<int>(random(2)), random(kFileBytes - n_bytes), n_bytes});
          }
          Plan plan(requests, round % 3 == 2);
          std::mutex mutex;
          std::condition_variable arrived;
          int n_left = plan.size();
          reader->Submit(plan.reads().data(), plan.size(),
                         [&](const Read& read, const Status& status) {
                           if (!status.ok() || !Right(read)) ++n_wrong;
                           const std::lock_guard<std::mutex> lock(mutex);
                           if (--n_left == 0) arrived.notify_all();
                         });
          std::unique_lock<std::mutex> lock(mutex);
          arrived.wait(lock, [&] { return n_left == 0; });
        }
      });
    }
    for (std::thread& submitter : submitters) submitter.join();
    CHECK_EQ(n_wrong.load(), 0);
    CHECK_EQ(reader->counts().reads, uint64_t{4 * 20 * 8});
  }
}

TEST(DoneMaySubmit) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    const auto reader = Open({a.path()}, OptionsOf(mode));
    Plan plan({{0, 0, 4096}, {0, 8192, 4096}, {0, 16384, 4096}});
    Outcome outcome;
    const ReadDone sink = outcome.Sink();
    std::function<void(const Read&, const Status&)> chain = [&](const Read& read,
                                                                const Status& status) {
      if (read.tag + 1 < 3) reader->Submit(&plan.reads()[read.tag + 1], 1, chain);
      sink(read, status);
    };
    reader->Submit(&plan.reads()[0], 1, chain);
    reader->Drain();
    CHECK(outcome.EachOnce(3));
    for (const Read& read : plan.reads()) CHECK(Right(read));
  }
}

TEST(DestructionFinishesDemandReadsAndDropsBackgroundOnes) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    std::vector<Request> requests;
    for (uint64_t i = 0; i < 64; ++i) requests.push_back({0, i * 20480, 20000});
    Plan demand(requests), background(requests, true);
    Outcome demanded, prefetched;
    {
      ReaderOptions options = OptionsOf(mode);
      options.depth = 2;
      const auto reader = Open({a.path()}, options);
      reader->Submit(background.reads().data(), background.size(), prefetched.Sink());
      reader->Submit(demand.reads().data(), demand.size(), demanded.Sink());
    }
    CHECK(demanded.EachOnce(64));
    CHECK(prefetched.EachOnce(64));
    for (const Read& read : demand.reads()) {
      CHECK_OK(demanded.at(read.tag));
      CHECK(Right(read));
    }
    for (const Read& read : background.reads()) {
      const Status& status = prefetched.at(read.tag);
      CHECK(status.ok() ? Right(read) : status.code() == Code::kCancelled);
    }
  }
}

TEST(CancelledBackgroundReadsEndOnceAndAtOnce) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    constexpr int kReads = 40;
    std::vector<Request> requests;
    for (uint64_t i = 0; i < kReads; ++i) requests.push_back({0, i * 20480, 20000});
    Plan background(requests, true);
    ReaderOptions options = OptionsOf(mode);
    options.depth = 1;
    const auto reader = Open({a.path()}, options);

    // The I/O threads are held in `done`, so that most of the reads cannot have started.
    std::mutex gate;
    std::condition_variable opened;
    bool open = false;
    Outcome outcome;
    const ReadDone sink = outcome.Sink();
    const std::thread::id here = std::this_thread::get_id();
    gate.lock();
    reader->Submit(background.reads().data(), background.size(),
                   [&](const Read& read, const Status& status) {
                     sink(read, status);
                     if (std::this_thread::get_id() == here) return;
                     std::unique_lock<std::mutex> lock(gate);
                     opened.wait(lock, [&] { return open; });
                   });
    const int n_cancelled = reader->CancelBackground();
    // 3 lanes in `done` and 2 operations in flight at the most.
    CHECK(n_cancelled >= kReads - 5);
    {
      const std::lock_guard<std::mutex> lock(outcome.mutex);
      int n_told = 0;
      for (const auto& [tag, statuses] : outcome.by_tag) {
        n_told += statuses.front().code() == Code::kCancelled ? 1 : 0;
      }
      CHECK_EQ(n_told, n_cancelled);
    }
    open = true;
    gate.unlock();
    opened.notify_all();
    reader->Drain();
    CHECK(outcome.EachOnce(kReads));
    CHECK_EQ(reader->counts().cancelled, static_cast<uint64_t>(n_cancelled));
    CHECK_EQ(reader->counts().reads, static_cast<uint64_t>(kReads - n_cancelled));
    CHECK_EQ(reader->counts().background_bytes, uint64_t{20000} * (kReads - n_cancelled));
    CHECK_EQ(reader->counts().errors, uint64_t{0});
    CheckAllRight(*reader, requests);
    CHECK_EQ(reader->CancelBackground(), 0);
  }
}

// Pages of the file that lie in the page cache.
uint64_t ResidentPages(const std::string& path, uint64_t n_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  void* map = ::mmap(nullptr, n_bytes, PROT_READ, MAP_SHARED, fd, 0);
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((n_bytes + page - 1) / page);
  if (::mincore(map, n_bytes, resident.data()) != 0) std::abort();
  ::munmap(map, n_bytes);
  ::close(fd);
  return static_cast<uint64_t>(std::count_if(resident.begin(), resident.end(),
                                             [](unsigned char c) { return (c & 1) != 0; }));
}

TEST(NothingStaysInThePageCache) {
  constexpr long kTmpfs = 0x01021994;
  struct statfs fs = {};
  if (::statfs(".", &fs) != 0 || fs.f_type == kTmpfs) {
    std::printf("left out: a file on tmpfs is its own cache\n");
    return;
  }
  for (const Mode& mode : Modes()) {
    const TempFile a(0, kFileBytes);
    const int fd = ::open(a.path().c_str(), O_RDONLY);
    CHECK_EQ(::fsync(fd), 0);  // dirty pages cannot be dropped
    CHECK_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    ::close(fd);
    ReaderOptions options = OptionsOf(mode);
    options.piece_bytes = 65536;
    options.faults.short_bytes = 20000;
    const auto reader = Open({a.path()}, options);
    CheckAllRight(*reader, {{0, 0, kFileBytes}});
    CHECK_EQ(ResidentPages(a.path(), kFileBytes), uint64_t{0});
  }
}

bool Notes(const Reader& reader, const std::string& text) {
  const std::vector<std::string> notes = reader.notes();
  return std::any_of(notes.begin(), notes.end(),
                     [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

TEST(WhatIsRefusedIsSaidAndReplaced) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  ReaderOptions options;
  options.faults.refuse_direct = true;
  options.faults.refuse_uring = true;
  const auto reader = Open({a.path(), b.path()}, options);
  CHECK(!reader->direct());
  CHECK_EQ(std::string(reader->backend()), std::string("pread"));
  CHECK(Notes(*reader, "O_DIRECT refused by " + b.path()));
  CheckAllRight(*reader, OddRequests());

  options.backend = "io_uring";
  const auto named = OpenReader({a.path()}, options);
  CHECK(named.status().code() == Code::kNotSupported);
  CHECK(named.status().message().find("io_uring") != std::string::npos);

  options.backend = "pread";
  options.direct = false;
  CHECK(Open({a.path()}, options)->notes().empty());
}

TEST(BadOptionsAndPathsAreNamed) {
  const TempFile a(0, 8192);
  ReaderOptions options;
  options.backend = "mmap";
  CHECK(OpenReader({a.path()}, options).status().code() == Code::kInvalidArgument);
  options = ReaderOptions();
  options.depth = 100000;
  CHECK(OpenReader({a.path()}, options).status().code() == Code::kInvalidArgument);
  options = ReaderOptions();
  options.piece_bytes = 1000;
  CHECK(OpenReader({a.path()}, options).status().code() == Code::kInvalidArgument);
  const Status missing = OpenReader({a.path(), "no/such.gguf"}, ReaderOptions()).status();
  CHECK(missing.code() == Code::kIo);
  CHECK(missing.message().find("no/such.gguf") != std::string::npos);
  CHECK(OpenReader({"."}, ReaderOptions()).status().message().find("not a regular file") !=
        std::string::npos);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

#include "storage/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "testing/check.h"

namespace remoe {
namespace {

// A byte that depends on where it lies and on which file, so that a shifted read cannot look right.
uint8_t ByteAt(int file, uint64_t offset) {
  uint64_t x =
      (offset + 1) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(file) * 0xBF58476D1CE4E5B9u;
  x ^= x >> 29;
  return static_cast<uint8_t>(x * 0x94D049BB133111EBu >> 56);
}

constexpr uint64_t kPiece = 256 * 1024;
constexpr uint64_t kFileBytes = 5 * kPiece + 1234;  // an unaligned tail

const std::vector<uint8_t>& Content(int file) {
  static const auto contents = [] {
    std::vector<std::vector<uint8_t>> made(2, std::vector<uint8_t>(kFileBytes));
    for (int i = 0; i < 2; ++i) {
      for (uint64_t at = 0; at < kFileBytes; ++at) made[static_cast<size_t>(i)][at] = ByteAt(i, at);
    }
    return made;
  }();
  return contents[static_cast<size_t>(file)];
}

class TempFile {
 public:
  TempFile(int index, uint64_t n_bytes) {
    char path[] = "reader_test_XXXXXX";
    const int fd = ::mkstemp(path);
    path_ = path;
    if (::write(fd, Content(index).data(), n_bytes) != static_cast<ssize_t>(n_bytes)) std::abort();
    ::close(fd);
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A buffer congruent to `offset`, with the pages around it that a direct read may overwrite.
class Buffer {
 public:
  Buffer(uint64_t offset, uint64_t n_bytes) {
    const uint64_t size = (offset % kPage + n_bytes + kPage - 1) / kPage * kPage;
    base_.reset(static_cast<uint8_t*>(std::aligned_alloc(kPage, size)));
    std::memset(base_.get(), 0xEE, size);
    dest_ = base_.get() + offset % kPage;
  }
  uint8_t* dest() const { return dest_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> base_;
  uint8_t* dest_;
};

struct Outcome {
  std::mutex mutex;
  std::map<uint64_t, std::vector<Status>> by_tag;

  ReadDone Sink() {
    return [this](const Read& read, const Status& status) {
      const std::lock_guard<std::mutex> lock(mutex);
      by_tag[read.tag].push_back(status);
    };
  }
  // Every tag below n was called back exactly once.
  bool EachOnce(uint64_t n) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (by_tag.size() != n) return false;
    return std::all_of(by_tag.begin(), by_tag.end(), [n](const auto& entry) {
      return entry.first < n && entry.second.size() == 1;
    });
  }
  const Status& at(uint64_t tag) { return by_tag[tag].front(); }
};

bool Right(const Read& read) {
  return std::memcmp(read.dest, Content(read.file).data() + read.offset, read.n_bytes) == 0;
}

struct Mode {
  const char* backend;
  bool direct;
};

// What is built in and allowed here: buffered and, where the working directory takes it, direct.
std::vector<Mode> Modes() {
  std::vector<Mode> modes;
  for (const char* backend : {"pread", "io_uring"}) {
    TempFile file(0, 8192);
    ReaderOptions options;
    options.backend = backend;
    const auto reader = OpenReader({file.path()}, options);
    if (!reader.ok()) {
      std::printf("left out: %s\n", reader.status().message().c_str());
      continue;
    }
    modes.push_back({backend, false});
    if (reader.value()->direct()) {
      modes.push_back({backend, true});
    } else {
      std::printf("left out: %s with O_DIRECT\n", backend);
    }
  }
  return modes;
}

ReaderOptions OptionsOf(const Mode& mode) {
  ReaderOptions options;
  options.backend = mode.backend;
  options.direct = mode.direct;
  options.piece_bytes = kPiece;
  return options;
}

std::unique_ptr<Reader> Open(const std::vector<std::string>& paths, const ReaderOptions& options) {
  auto reader = OpenReader(paths, options);
  if (!reader.ok()) {
    std::fprintf(stderr, "%s\n", reader.status().message().c_str());
    std::abort();
  }
  return std::move(reader.value());
}

struct Request {
  int file;
  uint64_t offset;
  uint64_t n_bytes;
};

class Plan {
 public:
  explicit Plan(const std::vector<Request>& requests, bool background = false) {
    for (const Request& request : requests) {
      buffers_.push_back(std::make_unique<Buffer>(request.offset, request.n_bytes));
      Read read;
      read.file = request.file;
      read.offset = request.offset;
      read.n_bytes = request.n_bytes;
      read.dest = buffers_.back()->dest();
      read.tag = reads_.size();
      read.background = background;
      reads_.push_back(read);
    }
  }
  std::vector<Read>& reads() { return reads_; }
  int size() const { return static_cast<int>(reads_.size()); }

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Read> reads_;
};

const std::vector<Request>& OddRequests() {
  static const std::vector<Request> requests = {{0, 0, 1},
                                                {0, 0, 4096},
                                                {0, 4095, 2},
                                                {0, 1, 4096},
                                                {1, 12345, 70000},
                                                {0, 4096, 65536},
                                                {1, 0, kFileBytes},
                                                {0, kFileBytes - 1, 1},
                                                {0, 99, 700000},
                                                {1, 8191, 1},
                                                {0, kFileBytes - 5000, 5000},
                                                {0, kPiece, kPiece},
                                                {1, kPiece + 17, 2 * kPiece + 4079},
                                                {0, kFileBytes - 4096, 4096}};
  return requests;
}

void CheckAllRight(Reader& reader, const std::vector<Request>& requests) {
  Plan plan(requests);
  Outcome outcome;
  reader.Submit(plan.reads().data(), plan.size(), outcome.Sink());
  reader.Drain();
  CHECK(outcome.EachOnce(plan.reads().size()));
  for (const Read& read : plan.reads()) {
    CHECK_OK(outcome.at(read.tag));
    CHECK(Right(read));
  }
}

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

// One read after another, so that each is an operation of its own.
Status ReadOne(Reader& reader, Plan& plan, size_t index) {
  Outcome outcome;
  reader.Submit(&plan.reads()[index], 1, outcome.Sink());
  reader.Drain();
  return outcome.at(plan.reads()[index].tag);
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

TEST(InterruptionsAndShortReadsAreFinished) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    for (const uint64_t short_bytes : {4096, 5000, 30000}) {
      ReaderOptions options = OptionsOf(mode);
      options.piece_bytes = 65536;
      options.faults.short_bytes = short_bytes;
      options.faults.interruptions = 3;
      const auto reader = Open({a.path(), b.path()}, options);
      CheckAllRight(*reader, OddRequests());
      CHECK(reader->counts().operations > 4 * OddRequests().size());
    }
  }
}

TEST(ReadsThatNeverDeliverAPageEndInAnError) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    ReaderOptions options = OptionsOf(mode);
    options.faults.short_bytes = 1000;
    const auto reader = Open({a.path()}, options);
    Plan plan({{0, 4096, 8192}});
    const Status status = ReadOne(*reader, plan, 0);
    CHECK_EQ(status.ok(), !mode.direct);
    if (!mode.direct) CHECK(Right(plan.reads()[0]));
  }
}

TEST(AFailedOperationFailsItsReadAndNoOther) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    ReaderOptions options = OptionsOf(mode);
    options.faults.fail_operation = 2;
    const auto reader = Open({a.path()}, options);
    Plan plan({{0, 0, 4096}, {0, 40960, 4096}, {0, 81920, 4096}, {0, 122880, 4096}});
    for (size_t i = 0; i < 4; ++i) {
      const Status status = ReadOne(*reader, plan, i);
      CHECK_EQ(status.ok(), i != 2);
      if (i != 2) {
        CHECK(Right(plan.reads()[i]));
        continue;
      }
      CHECK(status.code() == Code::kIo);
      CHECK(status.message().find(a.path()) != std::string::npos);
      CHECK(status.message().find("offset 81920") != std::string::npos);
      CHECK(status.message().find("Input/output error") != std::string::npos);
    }
    CHECK_OK(ReadOne(*reader, plan, 2));
    CHECK_EQ(reader->counts().errors, uint64_t{1});
    CHECK_EQ(reader->counts().reads, uint64_t{4});
  }
}

TEST(ABadRangeFailsWhatTouchesItUntilItHeals) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    const auto reader = Open({a.path(), b.path()}, OptionsOf(mode));
    FaultPlan faults;
    faults.range_file = 1;
    faults.range_offset = 3 * kPiece;
    faults.range_bytes = 1;
    faults.range_times = 1;
    reader->SetFaults(faults);
    // The second piece of a long read is the one that fails; the same place in the other file is
    // well.
    Plan plan({{1, 2 * kPiece, 2 * kPiece}, {0, 2 * kPiece, 2 * kPiece}});
    CHECK(!ReadOne(*reader, plan, 0).ok());
    CHECK_OK(ReadOne(*reader, plan, 1));
    CHECK_OK(ReadOne(*reader, plan, 0));
    CHECK(Right(plan.reads()[0]));
    faults.range_times = -1;
    reader->SetFaults(faults);
    for (int i = 0; i < 3; ++i) CHECK(!ReadOne(*reader, plan, 0).ok());
    reader->SetFaults(FaultPlan());
    CHECK_OK(ReadOne(*reader, plan, 0));
    CHECK(Right(plan.reads()[0]));
  }
}

TEST(ARingThatIsBusyOrInterruptedIsOfferedItAgain) {
  const TempFile a(0, kFileBytes), b(1, kFileBytes);
  for (const Mode& mode : Modes()) {
    for (const int error_number : {EINTR, EAGAIN, EBUSY}) {
      ReaderOptions options = OptionsOf(mode);
      options.faults.enter_error = error_number;
      options.faults.enter_failures = 5;
      CheckAllRight(*Open({a.path(), b.path()}, options), OddRequests());
    }
  }
}

TEST(ARingThatTakesNoMoreRequestsFailsItsReadsOnceEach) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    if (std::string(mode.backend) != "io_uring") continue;
    const auto reader = Open({a.path()}, OptionsOf(mode));
    std::vector<Request> requests;
    for (uint64_t i = 0; i < 40; ++i) requests.push_back({0, i * 8192, 4096});
    FaultPlan faults;
    faults.enter_error = EPERM;
    faults.enter_failures = -1;
    for (const bool background : {false, true}) {
      CheckAllRight(*reader, requests);
      reader->SetFaults(faults);
      Plan plan(requests, background);
      Outcome outcome;
      const ReadDone sink = outcome.Sink();
      const std::thread::id here = std::this_thread::get_id();
      std::atomic<int> n_told_here{0};
      reader->Submit(plan.reads().data(), plan.size(), [&](const Read& read, const Status& status) {
        n_told_here += std::this_thread::get_id() == here ? 1 : 0;
        sink(read, status);
      });
      reader->Drain();
      CHECK(outcome.EachOnce(40));
      CHECK_EQ(n_told_here.load(), 0);
      for (uint64_t tag = 0; tag < 40; ++tag) {
        CHECK(outcome.at(tag).code() == Code::kIo);
        CHECK(outcome.at(tag).message().find(a.path() + ": io_uring takes no requests") !=
              std::string::npos);
      }
      reader->SetFaults(FaultPlan());
    }
    CHECK_EQ(reader->counts().errors, uint64_t{80});
    CheckAllRight(*reader, requests);
  }
}

TEST(AFileCutShortIsSaidToBeTruncated) {
  for (const Mode& mode : Modes()) {
    const TempFile a(0, kFileBytes);
    const auto reader = Open({a.path()}, OptionsOf(mode));
    Plan plan({{0, kPiece, 8192}, {0, 100, 50}});
    FaultPlan faults;
    faults.truncate_bytes = kPiece + 4096;
    reader->SetFaults(faults);
    CHECK(ReadOne(*reader, plan, 0).message().find("was truncated") != std::string::npos);
    CHECK_OK(ReadOne(*reader, plan, 1));
    reader->SetFaults(FaultPlan());
    CHECK_OK(ReadOne(*reader, plan, 0));
    CHECK_OK(reader->CheckUnchanged());

    // And for real: in the middle of the read, inside a page of it, and at its start.
    for (const uint64_t length : {kPiece + 4096, kPiece + 10, kPiece, kPage}) {
      CHECK_EQ(::truncate(a.path().c_str(), static_cast<off_t>(length)), 0);
      const Status status = ReadOne(*reader, plan, 0);
      CHECK(status.code() == Code::kIo);
      CHECK(status.message().find(a.path() + " was truncated") != std::string::npos);
      CHECK_OK(ReadOne(*reader, plan, 1));
      CHECK(Right(plan.reads()[1]));
    }
    CHECK(reader->CheckUnchanged().message().find(a.path() + " was truncated") !=
          std::string::npos);
  }
}

TEST(ReadsThatMakeNoSenseFailOnceEachAndHarmNoOther) {
  const TempFile a(0, kFileBytes);
  for (const Mode& mode : Modes()) {
    const auto reader = Open({a.path()}, OptionsOf(mode));
    Plan plan({{0, 0, 4096}, {0, 0, 4096}, {0, 0, 4096}, {0, 0, 4096}, {0, 0, 4096}, {0, 0, 4096}});
    auto& reads = plan.reads();
    reads[0].file = 1;
    reads[1].file = -1;
    reads[2].offset = 1;  // no longer congruent to its buffer
    reads[3].n_bytes = 0;
    reads[4].offset = kFileBytes / kPage * kPage;  // the last page is not whole
    Outcome outcome;
    reader->Submit(reads.data(), plan.size(), outcome.Sink());
    reader->Drain();
    CHECK(outcome.EachOnce(6));
    for (uint64_t tag = 0; tag < 5; ++tag) CHECK(!outcome.at(tag).ok());
    CHECK_OK(outcome.at(5));
    CHECK(Right(reads[5]));
    CHECK_EQ(reader->counts().errors, uint64_t{5});
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

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "storage/testing/reads.h"
#include "testing/check.h"

namespace remoe {
namespace {

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

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

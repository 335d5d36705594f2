#include "storage/uring_ring.h"

#include <cstdio>

#include "testing/check.h"

#ifdef REMOE_HAVE_URING

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>
#include <vector>

namespace remoe {
namespace {

constexpr int kEntries = 4;

// A file of 256 bytes, each of which is its offset.
class Numbers {
 public:
  Numbers() {
    char path[] = "uring_ring_test_XXXXXX";
    fd_ = ::mkstemp(path);
    ::unlink(path);
    std::vector<uint8_t> bytes(256);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i);
    if (::write(fd_, bytes.data(), bytes.size()) != 256) std::abort();
  }
  ~Numbers() { ::close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// One byte, and where it is to be read to.
struct Request {
  uint8_t byte = 0xEE;
  iovec buffer = {&byte, 1};
};

std::unique_ptr<UringRing> Open() {
  auto ring = UringRing::Open(kEntries);
  if (!ring.ok()) {
    std::printf("left out: %s\n", ring.status().message().c_str());
    return nullptr;
  }
  return std::move(ring.value());
}

void WaitFor(const UringRing& ring) {
  pollfd watched = {ring.fd(), POLLIN, 0};
  CHECK_EQ(::poll(&watched, 1, 10000), 1);
}

TEST(RequestsComeBackWithTheirDataAsTheRingGoesRound) {
  const auto ring = Open();
  if (ring == nullptr) return;
  const Numbers file;
  for (int round = 0; round < 50; ++round) {
    Request requests[kEntries];
    for (int i = 0; i < kEntries; ++i) {
      ring->PrepareRead(file.fd(), &requests[i].buffer, 1, static_cast<uint64_t>(round + i),
                        &requests[i]);
    }
    CHECK_EQ(ring->n_prepared(), unsigned{kEntries});
    CHECK_EQ(ring->Submit(), kEntries);
    CHECK_EQ(ring->n_prepared(), 0u);
    std::set<void*> arrived;
    while (arrived.size() < kEntries) {
      UringRing::Completion completion;
      if (!ring->PopCompletion(&completion)) {
        WaitFor(*ring);
        continue;
      }
      CHECK_EQ(completion.result, int64_t{1});
      CHECK(arrived.insert(completion.data).second);
    }
    for (int i = 0; i < kEntries; ++i) CHECK_EQ(int{requests[i].byte}, round + i);
  }
}

TEST(CompletionsBeyondTheRingAreKept) {
  const auto ring = Open();
  if (ring == nullptr) return;
  const Numbers file;
  constexpr int kRequests = 8 * kEntries;  // the ring holds 2 * kEntries
  std::vector<Request> requests(kRequests);
  int n_submitted = 0;
  std::set<void*> arrived;
  UringRing::Completion completion;
  for (int i = 0; i < kRequests; ++i) {
    Request& request = requests[static_cast<size_t>(i)];
    request.buffer.iov_base = &request.byte;
    ring->PrepareRead(file.fd(), &request.buffer, 1, static_cast<uint64_t>(i), &request);
    // Older kernels take nothing more while completions wait for room.
    while (ring->n_prepared() > 0) {
      if (ring->Submit() == 1) {
        ++n_submitted;
      } else if (ring->PopCompletion(&completion)) {
        arrived.insert(completion.data);
      }
    }
  }
  CHECK_EQ(n_submitted, kRequests);
  while (arrived.size() < kRequests) {
    if (ring->PopCompletion(&completion)) {
      CHECK(arrived.insert(completion.data).second);
    } else {
      WaitFor(*ring);
    }
  }
  for (int i = 0; i < kRequests; ++i) CHECK_EQ(int{requests[static_cast<size_t>(i)].byte}, i);
}

TEST(WhatIsTakenBackNeverHappens) {
  const auto ring = Open();
  if (ring == nullptr) return;
  const Numbers file;
  Request first, second, third;
  for (int round = 0; round < 10; ++round) {
    ring->PrepareRead(file.fd(), &first.buffer, 1, 1, &first);
    CHECK_EQ(ring->Submit(), 1);
    ring->PrepareRead(file.fd(), &second.buffer, 1, 2, &second);
    ring->PrepareRead(file.fd(), &third.buffer, 1, 3, &third);
    const std::vector<void*> withdrawn = ring->TakeBack();
    CHECK(withdrawn == std::vector<void*>({&second, &third}));
    CHECK_EQ(ring->n_prepared(), 0u);
    WaitFor(*ring);
    UringRing::Completion completion;
    CHECK(ring->PopCompletion(&completion));
    CHECK(completion.data == &first);
    CHECK(!ring->PopCompletion(&completion));
  }
  CHECK_EQ(int{first.byte}, 1);
  CHECK_EQ(int{second.byte}, 0xEE);
  CHECK_EQ(int{third.byte}, 0xEE);
}

TEST(RegisteredFilesAreNamedByTheirIndex) {
  const auto ring = Open();
  if (ring == nullptr) return;
  const Numbers file;
  if (const int refusal = ring->RegisterFiles({file.fd()}); refusal != 0) {
    std::printf("left out: registering is refused: %d\n", refusal);
    return;
  }
  Request right, wrong;
  ring->PrepareRead(0, &right.buffer, 1, 77, &right);
  ring->PrepareRead(1, &wrong.buffer, 1, 77, &wrong);
  int n_taken = 0;
  while (ring->n_prepared() > 0) n_taken += std::max(0, ring->Submit());
  CHECK_EQ(n_taken, 2);
  for (int i = 0; i < 2; ++i) {
    UringRing::Completion completion;
    while (!ring->PopCompletion(&completion)) WaitFor(*ring);
    CHECK_EQ(completion.result, completion.data == &right ? int64_t{1} : int64_t{-EBADF});
  }
  CHECK_EQ(int{right.byte}, 77);
}

TEST(ARingWithTooManyEntriesIsRefusedByName) {
  const auto ring = UringRing::Open(1 << 20);
  CHECK(ring.status().code() == Code::kNotSupported);
  CHECK(ring.status().message().find("io_uring refused: ") == 0);
}

}  // namespace
}  // namespace remoe

#else

TEST(NothingToTest) {
  std::printf("left out: io_uring is not built in\n");
}

#endif

REMOE_TEST_MAIN()

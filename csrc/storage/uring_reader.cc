#include "storage/uring_reader.h"

#ifndef REMOE_HAVE_URING

namespace remoe {

Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>*, const ReaderOptions&) {
  return Status(
      Code::kNotSupported,
      "io_uring is not built in: the headers of the kernel (linux/io_uring.h) were missing "
      "or older than Linux 5.5");
}

}  // namespace remoe

#else

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "base/thread.h"
#include "storage/file_reader.h"
#include "storage/uring_ring.h"

namespace remoe {
namespace {

constexpr int kDefaultDepth = 8;
// How often in a row the kernel may be too busy to take a request, a millisecond apart.
constexpr int kMaxRefusals = 1000;

// Wakes a thread that polls.
class Bell {
 public:
  Bell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Bell() {
    if (fd_ >= 0) ::close(fd_);
  }
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;

  int fd() const { return fd_; }  // readable once it was rung; -1 if none was to be had
  void Ring() const {
    const uint64_t one = 1;
    (void)!::write(fd_, &one, sizeof(one));
  }
  void Clear() const {
    uint64_t count;
    (void)!::read(fd_, &count, sizeof(count));
  }

 private:
  const int fd_;
};

class UringReader final : public FileReader {
 public:
  // `ring` was set up for every operation that can be in flight.
  UringReader(std::vector<OpenFile> files, const ReaderOptions& options, int depth,
              std::unique_ptr<UringRing> ring, std::unique_ptr<Bell> bell)
      : FileReader(std::move(files), options, depth),
        ring_(std::move(ring)),
        bell_(std::move(bell)) {
    std::vector<int> descriptors;
    for (const OpenFile& file : this->files()) descriptors.push_back(file.fd());
    // Refused, every request names its descriptor: as fast on all but many-core machines.
    registered_ = ring_->RegisterFiles(descriptors) == 0;
  }

  Status Start() {
    return StartThread("reads", [this] { RunCompletions(); }, &completions_);
  }

  ~UringReader() override {
    Stop();
    {
      const std::lock_guard<std::mutex> lock(ring_mutex_);
      stopping_ = true;
    }
    bell_->Ring();
    if (completions_.joinable()) completions_.join();
  }

  const char* backend() const override { return "io_uring"; }

 private:
  void Wake() override {
    std::unique_lock<std::mutex> lock(ring_mutex_);
    while (auto operation = queue().TryPop()) {
      if (operation->status().ok()) {
        PrepareLocked(operation.release());
      } else {
        HandOverLocked(operation.release());
      }
    }
    SubmitLocked(lock);
  }

  // The ring owns the operation until its completion comes back.
  void PrepareLocked(Operation* operation) {
    const int file = operation->file();
    const int fd = registered_ ? file : files()[static_cast<size_t>(file)].fd();
    ring_->PrepareRead(fd, operation->iovecs(), operation->n_iovecs(), operation->offset(),
                       operation);
  }

  // Gives an operation that has failed to the I/O thread, which tells of it.
  void HandOverLocked(Operation* operation) {
    failed_.push_back(operation);
    bell_->Ring();
  }

  // Hands all that was prepared to the kernel. What it does not take ends in an error.
  void SubmitLocked(std::unique_lock<std::mutex>& lock) {
    int n_refusals = 0;
    while (ring_->n_prepared() > 0) {
      const int refusal = faults().EnterError();
      const int taken = refusal != 0 ? -refusal : ring_->Submit();
      if (taken > 0) n_refusals = 0;
      if (taken > 0 || taken == -EINTR) continue;
      const bool busy = taken == 0 || taken == -EAGAIN || taken == -EBUSY;
      if (busy && ++n_refusals < kMaxRefusals) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        lock.lock();
        continue;
      }
      const int error_number = taken == 0 ? EBUSY : -taken;
      for (void* data : ring_->TakeBack()) {
        auto* operation = static_cast<Operation*>(data);
        operation->Refuse(files()[static_cast<size_t>(operation->file())],
                          "io_uring takes no requests", error_number);
        HandOverLocked(operation);
      }
    }
  }

  void RunCompletions() {
    std::vector<UringRing::Completion> arrived;
    std::vector<Operation*> ended;
    for (;;) {
      bool stopping = false;
      {
        // The kernel's rings order memory between the submitter and this thread; the lock says so
        // to whoever cannot see that.
        const std::lock_guard<std::mutex> lock(ring_mutex_);
        stopping = stopping_;
        ended.swap(failed_);
        UringRing::Completion completion;
        while (ring_->PopCompletion(&completion)) arrived.push_back(completion);
      }
      if (arrived.empty() && ended.empty()) {
        if (stopping) return;
        Wait();
        continue;
      }
      for (const UringRing::Completion& completion : arrived) {
        auto* operation = static_cast<Operation*>(completion.data);
        if (Advance(*operation, completion.result) == Operation::Next::kDone) {
          ended.push_back(operation);
        } else {
          const std::lock_guard<std::mutex> lock(ring_mutex_);
          PrepareLocked(operation);
        }
      }
      for (const Operation* operation : ended) queue().Release(*operation);
      Wake();  // the device gets its next operations before anybody is told of the last ones
      for (Operation* operation : ended) queue().Settle(std::unique_ptr<Operation>(operation));
      arrived.clear();
      ended.clear();
    }
  }

  // Until there is a completion or the bell was rung. Polling, unlike entering the ring, cannot be
  // forbidden to a process in the middle of its life.
  void Wait() {
    pollfd watched[2] = {{ring_->fd(), POLLIN, 0}, {bell_->fd(), POLLIN, 0}};
    if (::poll(watched, 2, -1) < 0) {
      if (errno != EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return;
    }
    if ((watched[1].revents & POLLIN) != 0) bell_->Clear();
  }

  std::mutex ring_mutex_;  // guards the submission side of ring_, and failed_ and stopping_
  std::unique_ptr<UringRing> ring_;
  std::unique_ptr<Bell> bell_;
  std::vector<Operation*> failed_;  // to be told by the I/O thread
  bool stopping_ = false;
  bool registered_ = false;
  std::thread completions_;
};

}  // namespace

Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>* files,
                                                const ReaderOptions& options) {
  if (options.faults.refuse_uring) {
    return Status(Code::kNotSupported, "io_uring refused: by a test");
  }
  const int depth = options.depth > 0 ? options.depth : kDefaultDepth;
  auto ring = UringRing::Open(depth + options.background_depth);
  if (!ring.ok()) return ring.status();
  auto bell = std::make_unique<Bell>();
  if (bell->fd() < 0) {
    return Status(
        Code::kNotSupported,
        "io_uring refused: no descriptor for its bell (the limit on open files: ulimit -n)");
  }
  auto reader = std::make_unique<UringReader>(std::move(*files), options, depth,
                                              std::move(ring.value()), std::move(bell));
  REMOE_RETURN_IF_ERROR(reader->Start());
  return std::unique_ptr<Reader>(std::move(reader));
}

}  // namespace remoe

#endif  // REMOE_HAVE_URING

#include "storage/uring_reader.h"

#ifndef REMOE_HAVE_URING

namespace remoe {

Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>*, const ReaderOptions&) {
  return Status(Code::kNotSupported, "io_uring is not built in: liburing was not found");
}

}  // namespace remoe

#else

#include <liburing.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "storage/file_reader.h"

namespace remoe {
namespace {

constexpr int kDefaultDepth = 8;

class UringReader final : public FileReader {
 public:
  // `ring` was set up for every operation that can be in flight, and one more.
  UringReader(std::vector<OpenFile> files, const ReaderOptions& options, int depth,
              const io_uring& ring)
      : FileReader(std::move(files), options, depth), ring_(ring) {
    std::vector<int> descriptors;
    for (const OpenFile& file : this->files()) descriptors.push_back(file.fd());
    const int refusal = ::io_uring_register_files(&ring_, descriptors.data(),
                                                  static_cast<unsigned>(descriptors.size()));
    registered_ = refusal == 0;
    if (!registered_) {
      AddNote("io_uring would not register the files: " +
              std::generic_category().message(-refusal) + "; reading through plain descriptors");
    }
    completions_ = std::thread([this] { RunCompletions(); });
  }

  ~UringReader() override {
    Stop();
    {
      std::unique_lock<std::mutex> lock(ring_mutex_);
      io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
      ::io_uring_prep_nop(entry);
      ::io_uring_sqe_set_data(entry, nullptr);
      Enter(lock);
    }
    completions_.join();
    ::io_uring_queue_exit(&ring_);
  }

  const char* backend() const override { return "io_uring"; }

 private:
  void Wake() override {
    std::unique_lock<std::mutex> lock(ring_mutex_);
    while (auto operation = queue().TryPop()) PrepareLocked(operation.release());
    Enter(lock);
  }

  // The ring owns the operation until its completion comes back.
  void PrepareLocked(Operation* operation) {
    // Never null: the ring has room for all that the queue lets start.
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
    if (operation->status().ok()) {
      const int file = operation->file();
      const int fd = registered_ ? file : files()[static_cast<size_t>(file)].fd();
      ::io_uring_prep_readv(entry, fd, operation->iovecs(),
                            static_cast<unsigned>(operation->n_iovecs()), operation->offset());
      if (registered_) ::io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    } else {
      ::io_uring_prep_nop(entry);  // it failed already; a completion carries it to the I/O thread
    }
    ::io_uring_sqe_set_data(entry, operation);
  }

  // Hands what was prepared to the kernel.
  void Enter(std::unique_lock<std::mutex>& lock) {
    // What it does not take at once (short of memory, interrupted) stays in the ring.
    while (::io_uring_sq_ready(&ring_) > 0) {
      if (::io_uring_submit(&ring_) >= 0) continue;
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      lock.lock();
    }
  }

  void RunCompletions() {
    for (;;) {
      io_uring_cqe* completion = nullptr;
      if (::io_uring_wait_cqe(&ring_, &completion) != 0) continue;  // interrupted
      auto* operation = static_cast<Operation*>(::io_uring_cqe_get_data(completion));
      const int64_t result = completion->res;
      ::io_uring_cqe_seen(&ring_, completion);
      if (operation == nullptr) return;
      {
        // The kernel's rings order memory between the submitter and this thread; the lock says so
        // to whoever cannot see that.
        const std::lock_guard<std::mutex> lock(ring_mutex_);
      }
      if (operation->status().ok() && Advance(*operation, result) == Operation::Next::kAgain) {
        std::unique_lock<std::mutex> lock(ring_mutex_);
        PrepareLocked(operation);
        Enter(lock);
        continue;
      }
      queue().Release(*operation);
      Wake();  // the device gets its next operation before anybody is told of the last one
      queue().Settle(std::unique_ptr<Operation>(operation));
    }
  }

  std::mutex ring_mutex_;  // guards the submission side of ring_
  io_uring ring_;
  bool registered_ = false;
  std::thread completions_;
};

const char* Remedy(int error_number) {
  switch (error_number) {
    case EPERM:
    case EACCES:
      return " (a container's system call filter, or kernel.io_uring_disabled)";
    case ENOMEM:
      return " (the locked-memory limit: ulimit -l)";
    case ENOSYS:
      return " (a kernel without it)";
    default:
      return "";
  }
}

}  // namespace

Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>* files,
                                                const ReaderOptions& options) {
  const int depth = options.depth > 0 ? options.depth : kDefaultDepth;
  io_uring ring = {};
  int refusal = -EPERM;
  if (!options.faults.refuse_uring) {
    refusal = ::io_uring_queue_init(static_cast<unsigned>(depth + options.background_depth + 1),
                                    &ring, 0);
  }
  if (refusal != 0) {
    return Status(
        Code::kNotSupported,
        "io_uring refused: " + std::generic_category().message(-refusal) + Remedy(-refusal));
  }
  return std::unique_ptr<Reader>(
      std::make_unique<UringReader>(std::move(*files), options, depth, ring));
}

}  // namespace remoe

#endif  // REMOE_HAVE_URING

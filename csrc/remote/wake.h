// Wake: ends a poll() from another thread, or from a signal handler.
//
// Without it, what one thread has left to send would wait until the other looks again by itself.
// An eventfd: however often it is raised, one Clear() takes it back. Closed with its owner.
// Raise() from any thread and from signal handlers; the rest from the thread that polls.
#ifndef REMOE_REMOTE_WAKE_H_
#define REMOE_REMOTE_WAKE_H_

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace remoe {

class Wake {
 public:
  Wake() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~Wake() { close(fd_); }
  Wake(const Wake&) = delete;
  Wake& operator=(const Wake&) = delete;
  int fd() const { return fd_; }
  void Raise() const {
    const uint64_t one = 1;
    (void)!write(fd_, &one, sizeof(one));
  }
  void Clear() const {
    uint64_t taken;
    (void)!read(fd_, &taken, sizeof(taken));
  }

 private:
  const int fd_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_WAKE_H_

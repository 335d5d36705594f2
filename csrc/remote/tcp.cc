#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <vector>

#include "base/format.h"
#include "remote/channel.h"
#include "remote/name_lookup.h"

namespace remoe {

namespace {

constexpr int kBacklog = 128;

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

bool Again(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

class TcpChannel : public Channel {
 public:
  explicit TcpChannel(int fd) : file_(fd) {
    // A row waits for nobody's next packet.
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    // A machine that lost its power closes nothing: after a minute of silence the kernel asks.
    const int idle_s = 60, every_s = 10, times = 3;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times));
  }
  int fd() const override { return file_.fd(); }
  Result<size_t> Read(uint8_t* bytes, size_t n) override {
    const ssize_t got = recv(fd(), bytes, n, 0);
    if (got > 0) return static_cast<size_t>(got);
    if (got == 0) return Status(Code::kIo, "the other end closed the connection");
    if (Again(errno)) return size_t{0};
    return Status::Io("the connection was lost", errno);
  }
  Result<size_t> Write(const uint8_t* bytes, size_t n) override {
    const ssize_t sent = send(fd(), bytes, n, MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<size_t>(sent);
    if (Again(errno)) return size_t{0};
    return Status::Io("the connection was lost", errno);
  }
  Status Discard() override {
    uint8_t bytes[4096];
    while (true) {
      const ssize_t got = recv(fd(), bytes, sizeof(bytes), 0);
      if (got == 0) return Status(Code::kIo, "the other end closed the connection");
      if (got < 0)
        return Again(errno) ? Status::Ok() : Status::Io("the connection was lost", errno);
    }
  }

 private:
  File file_;
};

class TcpListener : public Listener {
 public:
  explicit TcpListener(int fd) : file_(fd) {}
  void set_port(uint16_t port) { port_ = port; }
  int fd() const override { return file_.fd(); }
  uint16_t port() const override { return port_; }
  Result<std::unique_ptr<Channel>> Accept() override {
    const int fd = accept4(file_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return std::unique_ptr<Channel>(new TcpChannel(fd));
    if (Again(errno) || errno == ECONNABORTED) return std::unique_ptr<Channel>();
    return Status::Io("a connection could not be taken", errno);
  }

 private:
  File file_;
  uint16_t port_ = 0;
};

int NewSocket(const SocketAddress& at) {
  return socket(at.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

using Clock = std::chrono::steady_clock;

Result<std::unique_ptr<Listener>> ListenAt(SocketAddress at, const Address& address,
                                           bool* is_elsewhere) {
  const int fd = NewSocket(at);
  *is_elsewhere = fd < 0 && errno == EAFNOSUPPORT;
  if (fd < 0) return Status::Io("no socket for " + address.text(), errno);
  auto listener = std::make_unique<TcpListener>(fd);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, at.get(), at.n_bytes) != 0 || listen(fd, kBacklog) != 0) {
    *is_elsewhere = errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT;
    return Status::Io("cannot listen on " + address.text(), errno);
  }
  socklen_t n_bytes = sizeof(at.storage);
  getsockname(fd, reinterpret_cast<sockaddr*>(&at.storage), &n_bytes);
  // The port is at the same place in both kinds of addresses.
  listener->set_port(ntohs(reinterpret_cast<sockaddr_in*>(&at.storage)->sin_port));
  return std::unique_ptr<Listener>(std::move(listener));
}

Result<std::unique_ptr<Channel>> ConnectAt(const SocketAddress& at, const Address& address,
                                           Clock::time_point until, const Wake* stop) {
  const int fd = NewSocket(at);
  if (fd < 0) return Status::Io("no socket for " + address.text(), errno);
  std::unique_ptr<Channel> channel(new TcpChannel(fd));
  if (connect(fd, at.get(), at.n_bytes) == 0) return channel;
  if (errno != EINPROGRESS) return Status::Io("no connection", errno);
  REMOE_RETURN_IF_ERROR(
      AwaitChannel(*channel, POLLOUT, until, stop, "no connection: it took too long"));
  int error = 0;
  socklen_t n_bytes = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n_bytes);
  if (error != 0) return Status::Io("no connection", error);
  return channel;
}

}  // namespace

Status AwaitChannel(const Channel& channel, short events, Clock::time_point until, const Wake* stop,
                    const char* late) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) return Status(Code::kIo, late);  // however much comes, a little at a time
    // Of a negative descriptor nothing is heard.
    pollfd waited[] = {{channel.fd(), events, 0}, {stop == nullptr ? -1 : stop->fd(), POLLIN, 0}};
    const int n = poll(waited, 2, static_cast<int>(left));
    if (n > 0 && waited[1].revents != 0) return Status(Code::kCancelled, "stopped");
    if (n > 0) return Status::Ok();
    if (n == 0 || errno != EINTR) return Status(Code::kIo, late);
  }
}

Result<std::unique_ptr<Listener>> ListenTcp(const Address& address) {
  const Result<std::vector<SocketAddress>> found = LookUp(address, nullptr);
  if (!found.ok()) return found.status();
  Status failed;
  for (const SocketAddress& at : found.value()) {
    bool is_elsewhere = false;
    Result<std::unique_ptr<Listener>> listener = ListenAt(at, address, &is_elsewhere);
    if (listener.ok() || !is_elsewhere) return listener;
    if (failed.ok()) failed = listener.status();
  }
  return failed;
}

Result<std::unique_ptr<Channel>> ConnectTcp(const Address& address, int timeout_ms,
                                            const Wake* stop) {
  const Result<std::vector<SocketAddress>> found = LookUp(address, stop);
  if (!found.ok()) return found.status();
  Status failed;
  auto n_left = static_cast<int>(found.value().size());
  const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (const SocketAddress& at : found.value()) {
    // One that does not answer leaves the others their part of the time.
    const auto now = Clock::now();
    const auto its_end = now + std::max(Clock::duration::zero(), until - now) / n_left--;
    Result<std::unique_ptr<Channel>> channel = ConnectAt(at, address, its_end, stop);
    if (channel.ok() || channel.status().code() == Code::kCancelled) return channel;
    if (failed.ok()) failed = channel.status();
  }
  return failed;
}

}  // namespace remoe

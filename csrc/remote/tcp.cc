#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/format.h"
#include "remote/channel.h"

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

struct SocketAddress {
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr_storage storage{};
  socklen_t n_bytes = 0;
};

// Looks a name up, which may wait for a name server.
Result<SocketAddress> LookUp(const Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  const int error = getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return Status(Code::kIo, Format("no host %s (%s)", address.host.c_str(), gai_strerror(error)));
  }
  SocketAddress at;
  at.n_bytes = found->ai_addrlen;
  std::memcpy(&at.storage, found->ai_addr, at.n_bytes);
  freeaddrinfo(found);
  return at;
}

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

}  // namespace

Result<std::unique_ptr<Listener>> ListenTcp(const Address& address) {
  Result<SocketAddress> found = LookUp(address);
  if (!found.ok()) return found.status();
  SocketAddress& at = found.value();
  const int fd = NewSocket(at);
  if (fd < 0) return Status::Io("no socket for " + address.text(), errno);
  auto listener = std::make_unique<TcpListener>(fd);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, at.get(), at.n_bytes) != 0 || listen(fd, kBacklog) != 0) {
    return Status::Io("cannot listen on " + address.text(), errno);
  }
  socklen_t n_bytes = sizeof(at.storage);
  getsockname(fd, reinterpret_cast<sockaddr*>(&at.storage), &n_bytes);
  // The port is at the same place in both kinds of addresses.
  listener->set_port(ntohs(reinterpret_cast<sockaddr_in*>(&at.storage)->sin_port));
  return std::unique_ptr<Listener>(std::move(listener));
}

Result<std::unique_ptr<Channel>> ConnectTcp(const Address& address, int timeout_ms) {
  const Result<SocketAddress> found = LookUp(address);
  if (!found.ok()) return found.status();
  const SocketAddress& at = found.value();
  const int fd = NewSocket(at);
  if (fd < 0) return Status::Io("no socket for " + address.text(), errno);
  std::unique_ptr<Channel> channel(new TcpChannel(fd));
  if (connect(fd, at.get(), at.n_bytes) == 0) return channel;
  if (errno != EINPROGRESS) return Status::Io("no connection", errno);
  pollfd waited{fd, POLLOUT, 0};
  if (poll(&waited, 1, timeout_ms) <= 0)
    return Status(Code::kIo, "no connection: it took too long");
  int error = 0;
  socklen_t n_bytes = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n_bytes);
  if (error != 0) return Status::Io("no connection", error);
  return channel;
}

}  // namespace remoe

#include "remote/name_lookup.h"

#include <netdb.h>
#include <poll.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/format.h"
#include "base/thread.h"

namespace remoe {

namespace {

constexpr size_t kMostAddresses = 8;  // of a name that are tried

Result<std::vector<SocketAddress>> Ask(const Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  const int error = getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return Status(Code::kIo, Format("no host %s (%s)", address.host.c_str(), gai_strerror(error)));
  }
  std::vector<SocketAddress> all;
  for (const addrinfo* each = found; each != nullptr && all.size() < kMostAddresses;
       each = each->ai_next) {
    SocketAddress& at = all.emplace_back();
    at.n_bytes = each->ai_addrlen;
    std::memcpy(&at.storage, each->ai_addr, at.n_bytes);
  }
  freeaddrinfo(found);
  return all;
}

// What the thread that asks leaves for whoever waits, if anybody still does.
struct Asked {
  explicit Asked(const Address& whom) : address(whom) {}
  const Address address;
  const Wake over;
  std::mutex mutex;  // of this
  Result<std::vector<SocketAddress>> answer = Status(Code::kCancelled, "stopped");
};

}  // namespace

Result<std::vector<SocketAddress>> LookUp(const Address& address, const Wake* stop) {
  if (stop == nullptr || address.is_number()) return Ask(address);  // a number is known at once
  const auto asked = std::make_shared<Asked>(address);
  if (asked->over.fd() < 0) return Status::Io("no descriptor to wait for a name with", errno);
  std::thread thread;
  REMOE_RETURN_IF_ERROR(StartThread(
      "looks a name up",
      [asked] {
        Result<std::vector<SocketAddress>> answer = Ask(asked->address);
        const std::lock_guard<std::mutex> lock(asked->mutex);
        asked->answer = std::move(answer);
        asked->over.Raise();
      },
      &thread));
  thread.detach();
  pollfd waited[] = {{asked->over.fd(), POLLIN, 0}, {stop->fd(), POLLIN, 0}};
  while (poll(waited, 2, -1) < 0 && errno == EINTR) {
  }
  const std::lock_guard<std::mutex> lock(asked->mutex);
  return asked->answer;
}

}  // namespace remoe

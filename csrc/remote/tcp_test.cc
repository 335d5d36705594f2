// Names that stand for several addresses. Here the C library's look-up is this file's own.
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "remote/channel.h"
#include "remote/remote_source.h"
#include "remote/testing/ends.h"

namespace {

std::vector<std::string>& Stands() {
  static std::vector<std::string> addresses;
  return addresses;
}

std::atomic<bool> is_dead{false};  // the name server
std::atomic<int> n_asking{0};

}  // namespace

extern "C" int getaddrinfo(const char*, const char* port, const addrinfo*, addrinfo** found) {
  *found = nullptr;
  n_asking++;
  while (is_dead) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  n_asking--;
  for (auto each = Stands().rbegin(); each != Stands().rend(); ++each) {
    auto* at = new sockaddr_in{};
    at->sin_family = AF_INET;
    at->sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
    inet_pton(AF_INET, each->c_str(), &at->sin_addr);
    auto* entry = new addrinfo{};
    entry->ai_family = AF_INET;
    entry->ai_addr = reinterpret_cast<sockaddr*>(at);
    entry->ai_addrlen = sizeof(sockaddr_in);
    entry->ai_next = *found;
    *found = entry;
  }
  return *found == nullptr ? EAI_NONAME : 0;
}

extern "C" void freeaddrinfo(addrinfo* found) noexcept {
  while (found != nullptr) {
    const addrinfo* next = found->ai_next;
    delete reinterpret_cast<sockaddr_in*>(found->ai_addr);
    delete found;
    found = const_cast<addrinfo*>(next);
  }
}

namespace remoe {
namespace {

constexpr int kWaitMs = 10000;

// Listens at one address, on a port of the kernel's.
std::unique_ptr<Listener> ListenAtOne(const std::string& address) {
  Stands() = {address};
  Result<std::unique_ptr<Listener>> listener = ListenTcp({"board", 0});
  CHECK_OK(listener.status());
  return std::move(listener.value());
}

TEST(ANameIsTriedAtAllItsAddresses) {
  const std::unique_ptr<Listener> listener = ListenAtOne("127.0.0.1");
  for (const auto& stands : std::vector<std::vector<std::string>>{
           {"127.0.0.1"}, {"127.0.0.2", "127.0.0.1"}, {"127.0.0.3", "127.0.0.2", "127.0.0.1"}}) {
    Stands() = stands;
    const Result<std::unique_ptr<Channel>> channel =
        ConnectTcp({"board", listener->port()}, kWaitMs);
    CHECK_OK(channel.status());
    pollfd waited{listener->fd(), POLLIN, 0};
    CHECK_EQ(poll(&waited, 1, kWaitMs), 1);
    CHECK(listener->Accept().value() != nullptr);
  }
}

TEST(WhereNoneAnswersTheFirstReasonIsSaid) {
  uint16_t nobodys_port;
  {
    const std::unique_ptr<Listener> listener = ListenAtOne("127.0.0.1");
    nobodys_port = listener->port();
  }
  Stands() = {"127.0.0.2", "127.0.0.1"};
  const Status status = ConnectTcp({"board", nobodys_port}, kWaitMs).status();
  CHECK(status.message().find("refused") != std::string::npos);
  Stands() = {};
  CHECK(!ConnectTcp({"board", nobodys_port}, kWaitMs).ok());
}

TEST(AWorkerListensAtAnAddressOfThisMachine) {
  Stands() = {"203.0.113.1", "127.0.0.1"};  // the first is nobody's: kept for documentation
  const Result<std::unique_ptr<Listener>> listener = ListenTcp({"board", 0});
  CHECK_OK(listener.status());
  // Where somebody listens already, no other address is taken instead: it would go unnoticed.
  Stands() = {"127.0.0.1", "127.0.0.2"};
  CHECK(!ListenTcp({"board", listener.value()->port()}).ok());
}

TEST(ADeadNameServerHoldsNobodysEndUp) {
  Stands() = {};
  is_dead = true;
  std::atomic<bool> over{false};
  std::thread ending([&] {
    auto made = testing::Engine({{"board", 1}, {"other-board", 1}});
    (void)testing::Eventually([] { return n_asking == 2; });
    made.value().reset();
    over = true;
  });
  // What works needs no time at all; what waits for the server, for ever.
  for (int i = 0; i < kWaitMs && !over; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(over);
  CHECK_EQ(n_asking.load(), 2);
  is_dead = false;
  ending.join();
  CHECK(testing::Eventually([] { return n_asking == 0; }));
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// relay NAMESPACE_A ADDRESS_A NAMESPACE_B ADDRESS_B DELAY_US: a line between two network namespaces.
//
// Makes a TUN device "line" in each, and carries packets from one to the other DELAY_US after they
// came. Rates are the kernel's (tc tbf on the devices). Prints "ready" once both are up; ends with
// SIGTERM, and the devices with it. "down\n" on stdin drops every packet, "up\n" carries them again.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMtu = 9000;

struct Packet {
  Clock::time_point due;
  std::vector<char> bytes;
};

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

int Device(const std::string& name_space, const std::string& address) {
  const int space = open(("/var/run/netns/" + name_space).c_str(), O_RDONLY | O_CLOEXEC);
  if (space < 0 || setns(space, CLONE_NEWNET) != 0) Fail(name_space.c_str());
  close(space);
  const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) Fail("/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  std::strcpy(request.ifr_name, "line");
  if (ioctl(fd, TUNSETIFF, &request) != 0) Fail("a TUN device");
  const std::string up = "ip link set lo up && ip link set line mtu " + std::to_string(kMtu) +
                         " up && ip address add " + address + "/24 dev line";
  if (std::system(up.c_str()) != 0) Fail("ip");
  return fd;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int fds[2] = {Device(argv[1], argv[2]), Device(argv[3], argv[4])};
  const auto delay = std::chrono::microseconds(std::atol(argv[5]));
  prctl(PR_SET_TIMERSLACK, 1);
  std::puts("ready");
  std::fflush(stdout);
  std::deque<Packet> lines[2];  // by where they came from
  std::vector<char> buffer(1 << 16);
  bool down = false;
  while (true) {
    auto next = Clock::now() + std::chrono::seconds(1);
    pollfd polled[3] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    for (const auto& line : lines) {
      if (!line.empty()) next = std::min(next, line.front().due);
    }
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(next - Clock::now());
    const timespec wait{left.count() <= 0 ? 0 : static_cast<time_t>(left.count() / 1000000000),
                        left.count() <= 0 ? 0 : static_cast<long>(left.count() % 1000000000)};
    ppoll(polled, 3, &wait, nullptr);
    if (polled[2].revents & POLLIN) {
      const ssize_t n = read(STDIN_FILENO, buffer.data(), buffer.size());
      if (n <= 0) return 0;
      down = std::string(buffer.data(), static_cast<size_t>(n)).find("down") != std::string::npos;
    } else if (polled[2].revents != 0) {
      return 0;
    }
    const auto now = Clock::now();
    for (int from = 0; from < 2; from++) {
      while (true) {
        const ssize_t n = read(fds[from], buffer.data(), buffer.size());
        if (n <= 0) break;
        if (!down) lines[from].push_back({now + delay, {buffer.data(), buffer.data() + n}});
      }
      while (!lines[from].empty() && lines[from].front().due <= Clock::now()) {
        (void)!write(fds[1 - from], lines[from].front().bytes.data(),
                     lines[from].front().bytes.size());
        lines[from].pop_front();
      }
    }
  }
}

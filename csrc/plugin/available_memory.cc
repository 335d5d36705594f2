#include "plugin/available_memory.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

namespace remoe::plugin {

namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kMachineReserve = 256 * kMiB;
constexpr uint64_t kCgroupReserve = 96 * kMiB;

std::string Text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool Exists(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0;
}

// "max" in version 2; version 1 writes a number near 2^63 for no limit.
std::optional<uint64_t> Number(const std::string& path) {
  std::istringstream text(Text(path));
  uint64_t value = 0;
  if (!(text >> value) || value >= 1ull << 60) return std::nullopt;
  return value;
}

// "name value" lines, as in memory.stat, and "name: value kB" ones.
std::map<std::string, uint64_t> Table(const std::string& path) {
  std::map<std::string, uint64_t> table;
  std::istringstream lines(Text(path));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value) table[name] = value;
  }
  return table;
}

// Of a group's usage, the page cache that the kernel can drop: not what is mapped, which is code that
// runs, nor what has to be written first. Version 1 has other names, and sums with those below.
uint64_t Reclaimable(const std::string& folder) {
  const auto stat = Table(folder + "/memory.stat");
  const auto either = [&stat](const std::string& name, const std::string& old) {
    for (const std::string& each : {"total_" + old, name, old}) {
      const auto found = stat.find(each);
      if (found != stat.end()) return found->second;
    }
    return uint64_t{0};
  };
  const uint64_t files =
      either("inactive_file", "inactive_file") + either("active_file", "active_file");
  const uint64_t kept = either("file_mapped", "mapped_file") + either("file_dirty", "dirty") +
                        either("file_writeback", "writeback");
  return files - std::min(files, kept);
}

void Tighten(const std::string& folder, const char* limit_name, const char* usage_name,
             AvailableMemory* memory) {
  const auto limit = Number(folder + "/" + limit_name);
  const auto usage = Number(folder + "/" + usage_name);
  if (!limit || !usage) return;
  const uint64_t held = *usage - std::min(*usage, Reclaimable(folder));
  const uint64_t free = *limit > held ? *limit - held : 0;
  if (free >= memory->n_bytes) return;
  *memory = {free, kCgroupReserve};
}

// Where the groups of a hierarchy are: version 2 may stand beside version 1, whose controllers may be
// in one folder without the links that systemd makes.
std::string Mounted(const std::string& root, const std::string& controllers) {
  const std::string top = root + "/sys/fs/cgroup";
  if (controllers.empty()) return Exists(top + "/cgroup.controllers") ? top : top + "/unified";
  return Exists(top + "/memory") ? top + "/memory" : top + "/" + controllers;
}

// The process' group and all above it.
void TightenByGroups(const std::string& root, AvailableMemory* memory) {
  std::istringstream lines(Text(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && ("," + controllers + ",").find(",memory,") == std::string::npos) continue;
    const std::string top = Mounted(root, controllers);
    for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      if (unified) {
        // Beyond the first the kernel slows a process down until it gives back.
        Tighten(top + path, "memory.high", "memory.current", memory);
        Tighten(top + path, "memory.max", "memory.current", memory);
      } else {
        Tighten(top + path, "memory.limit_in_bytes", "memory.usage_in_bytes", memory);
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
}

// What `ulimit` leaves this process, where it limits anything.
void TightenByLimits(AvailableMemory* memory) {
  const auto status = Table("/proc/self/status");
  const auto tighten = [&](auto resource, const char* used_name) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const auto used = status.find(used_name);
    const uint64_t held = used != status.end() ? used->second * 1024 : 0;
    const uint64_t free = limit.rlim_cur - std::min<uint64_t>(limit.rlim_cur, held);
    if (free < memory->n_bytes) *memory = {free, kMachineReserve};
  };
  tighten(RLIMIT_AS, "VmSize:");
  tighten(RLIMIT_DATA, "VmData:");
}

}  // namespace

AvailableMemory MeasureMemory(const std::string& root) {
  const auto table = Table(root + "/proc/meminfo");
  AvailableMemory memory{0, kMachineReserve};
  for (const char* name : {"MemFree:", "MemAvailable:"}) {  // the second since Linux 3.14
    const auto found = table.find(name);
    if (found != table.end()) memory.n_bytes = found->second * 1024;
  }
  TightenByGroups(root, &memory);
  if (root.empty()) TightenByLimits(&memory);
  return memory;
}

}  // namespace remoe::plugin

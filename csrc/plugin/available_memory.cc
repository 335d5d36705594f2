#include "plugin/available_memory.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>

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

// Of a group's usage, the page cache that the kernel can drop.
uint64_t Reclaimable(const std::string& folder) {
  const auto stat = Table(folder + "/memory.stat");
  const auto either = [&stat](const char* name) {
    const auto total = stat.find(std::string("total_") + name);
    if (total != stat.end()) return total->second;
    const auto own = stat.find(name);
    return own != stat.end() ? own->second : 0;
  };
  return either("inactive_file") + either("active_file");
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

}  // namespace

AvailableMemory MeasureMemory() {
  const auto table = Table("/proc/meminfo");
  const auto available = table.find("MemAvailable:");
  AvailableMemory memory{available != table.end() ? available->second * 1024 : 0, kMachineReserve};
  std::istringstream lines(Text("/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",memory,") == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      Tighten(root + path, unified ? "memory.max" : "memory.limit_in_bytes",
              unified ? "memory.current" : "memory.usage_in_bytes", &memory);
      if (path.empty()) break;
    }
  }
  return memory;
}

}  // namespace remoe::plugin

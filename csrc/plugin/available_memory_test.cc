// What memory is left, on trees of kernel files as machines have them.
#include "plugin/available_memory.h"

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "testing/check.h"

namespace remoe::plugin {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr char kMeminfo[] = "MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 4194304 kB\n";

uint64_t MiBLeft(const std::map<std::string, std::string>& files) {
  const std::filesystem::path root = std::filesystem::current_path() / "available_memory_test.tree";
  std::filesystem::remove_all(root);
  for (const auto& [name, text] : files) {
    std::filesystem::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  }
  const uint64_t left = MeasureMemory(root.string()).n_bytes / kMiB;
  std::filesystem::remove_all(root);
  return left;
}

TEST(WithoutLimitsItIsWhatTheKernelSays) {
  CHECK_EQ(MiBLeft({{"proc/meminfo", kMeminfo}}), 4096u);
  CHECK_EQ(MiBLeft({{"proc/meminfo", "MemFree: 2048 kB\n"}}), 2u);
  CHECK_EQ(MiBLeft({}), 0u);
  CHECK_EQ(MiBLeft({{"proc/meminfo", kMeminfo}, {"proc/self/cgroup", "0::x\n4:memory:\n:\n"}}),
           4096u);
}

TEST(AllGroupsAboveCountAndTheirHighToo) {
  std::map<std::string, std::string> tree = {
      {"proc/meminfo", kMeminfo},
      {"proc/self/cgroup", "0::/a/b\n"},
      {"sys/fs/cgroup/cgroup.controllers", "memory\n"},
      {"sys/fs/cgroup/a/b/memory.high", "max\n"},
      {"sys/fs/cgroup/a/b/memory.max", "max\n"},
      {"sys/fs/cgroup/a/b/memory.current", "104857600\n"},
      {"sys/fs/cgroup/a/memory.max", "3221225472\n"},
      {"sys/fs/cgroup/a/memory.current", "104857600\n"},
  };
  CHECK_EQ(MiBLeft(tree), 2972u);
  tree["sys/fs/cgroup/a/memory.high"] = "2147483648\n";
  CHECK_EQ(MiBLeft(tree), 1948u);
  tree["sys/fs/cgroup/a/b/memory.high"] = "1073741824\n";
  CHECK_EQ(MiBLeft(tree), 924u);
}

TEST(PagesThatAreMappedOrDirtyAreNotGivenUp) {
  std::map<std::string, std::string> tree = {
      {"proc/meminfo", kMeminfo},
      {"proc/self/cgroup", "0::/\n"},
      {"sys/fs/cgroup/cgroup.controllers", "memory\n"},
      {"sys/fs/cgroup/memory.max", "1073741824\n"},
      {"sys/fs/cgroup/memory.current", "1073741824\n"},
      {"sys/fs/cgroup/memory.stat", "inactive_file 419430400\nactive_file 104857600\n"},
  };
  CHECK_EQ(MiBLeft(tree), 500u);
  tree["sys/fs/cgroup/memory.stat"] +=
      "file_mapped 209715200\nfile_dirty 52428800\nfile_writeback 52428800\n";
  CHECK_EQ(MiBLeft(tree), 200u);
}

TEST(Version1IsFoundWithItsLinksWithoutThemAndBesideVersion2) {
  for (const char* folder : {"memory", "cpu,memory"}) {
    const std::string group = std::string("sys/fs/cgroup/") + folder + "/a/";
    CHECK_EQ(MiBLeft({{"proc/meminfo", kMeminfo},
                      {"proc/self/cgroup", "4:cpu,memory:/a/b\n0::/x\n"},
                      {group + "memory.limit_in_bytes", "1073741824\n"},
                      {group + "memory.usage_in_bytes", "536870912\n"},
                      {group + "memory.stat", "mapped_file 0\ntotal_inactive_file 104857600\n"}}),
             612u);
  }
  CHECK_EQ(MiBLeft({{"proc/meminfo", kMeminfo},
                    {"proc/self/cgroup", "0::/x\n"},
                    {"sys/fs/cgroup/unified/x/memory.max", "1073741824\n"},
                    {"sys/fs/cgroup/unified/x/memory.current", "0\n"}}),
           1024u);
}

// What this process has of what RLIMIT_DATA counts: terabytes, under a sanitizer.
uint64_t DataBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmData:", 0) == 0) return std::stoull(line.substr(7)) * 1024;
  }
  return 0;
}

TEST(WhatUlimitLeavesIsNotExceeded) {
  const uint64_t more = 64 * kMiB;
  rlimit before{};
  getrlimit(RLIMIT_DATA, &before);
  const rlimit tight{DataBytes() + more, before.rlim_max};
  if (setrlimit(RLIMIT_DATA, &tight) != 0) return;  // more may not be asked for here
  const uint64_t left = MeasureMemory().n_bytes;
  setrlimit(RLIMIT_DATA, &before);
  CHECK(left <= more);
}

}  // namespace
}  // namespace remoe::plugin

REMOE_TEST_MAIN()

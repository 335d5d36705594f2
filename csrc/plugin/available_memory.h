// What memory this process may still take: MemAvailable, the limits of its memory cgroups and of all
// above them (memory.high too), and `ulimit`'s, whichever is tightest. The engine's own measure is
// remoe_edge/machine/memory.py; both say the same.
//
// Reads the kernel's files anew with each call and keeps nothing. A file that cannot be read limits
// nothing.
//
// Any thread.
#ifndef REMOE_PLUGIN_AVAILABLE_MEMORY_H_
#define REMOE_PLUGIN_AVAILABLE_MEMORY_H_

#include <cstdint>
#include <string>

namespace remoe::plugin {

struct AvailableMemory {
  uint64_t n_bytes = 0;
  // What is best left free of it: more where other programs live off the same memory.
  uint64_t reserve_bytes = 0;
};
// `root`: where /proc and /sys are; of another place than this machine's, `ulimit` is left out.
AvailableMemory MeasureMemory(const std::string& root = "");

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_AVAILABLE_MEMORY_H_

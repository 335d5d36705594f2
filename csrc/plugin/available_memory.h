// What memory this process may still take: MemAvailable and its memory cgroups' limits, whichever is
// tighter.
//
// Reads the kernel's files anew with each call and keeps nothing. A file that cannot be read limits
// nothing.
//
// Any thread.
#ifndef REMOE_PLUGIN_AVAILABLE_MEMORY_H_
#define REMOE_PLUGIN_AVAILABLE_MEMORY_H_

#include <cstdint>

namespace remoe::plugin {

struct AvailableMemory {
  uint64_t n_bytes = 0;
  // What is best left free of it: more where other programs live off the same memory.
  uint64_t reserve_bytes = 0;
};
AvailableMemory MeasureMemory();

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_AVAILABLE_MEMORY_H_

// The files that this process has mapped, as /proc/self/maps tells.
//
// llama.cpp maps a model whole and hands out pointers into it; here such a pointer leads back to its
// file, without a look at what is mapped.
//
// Reads the kernel's table anew with each call. Any thread.
#ifndef REMOE_PLUGIN_PROCESS_MAPS_H_
#define REMOE_PLUGIN_PROCESS_MAPS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace remoe::plugin {

struct FileMapping {
  uintptr_t begin = 0, end = 0;
  uint64_t offset = 0;  // in the file, of `begin`
  std::string path;

  bool holds(uintptr_t address) const { return begin <= address && address < end; }
};

// Of regular files that still have the name under which they were mapped.
std::vector<FileMapping> FileMappings();

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_PROCESS_MAPS_H_

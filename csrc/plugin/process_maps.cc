#include "plugin/process_maps.h"

#include <sys/stat.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>

namespace remoe::plugin {

namespace {

// The kernel writes a line feed in a path as \012.
std::string Unescaped(const std::string& path) {
  std::string plain;
  for (size_t i = 0; i < path.size(); i++) {
    const bool escaped = path.compare(i, 4, "\\012") == 0;
    plain += escaped ? '\n' : path[i];
    if (escaped) i += 3;
  }
  return plain;
}

// A file that was deleted or replaced since has " (deleted)" after its name. Device and inode are not
// compared: file systems over others show different ones here and there.
bool IsRegular(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

}  // namespace

std::vector<FileMapping> FileMappings() {
  std::vector<FileMapping> mappings;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    FileMapping mapping;
    uint64_t inode = 0;
    int path_at = 0;
    const int n = std::sscanf(line.c_str(),
                              "%" SCNxPTR "-%" SCNxPTR " %*4s %" SCNx64 " %*x:%*x %" SCNu64 " %n",
                              &mapping.begin, &mapping.end, &mapping.offset, &inode, &path_at);
    const bool named = path_at > 0 && static_cast<size_t>(path_at) < line.size();
    if (n != 4 || inode == 0 || !named) continue;
    mapping.path = Unescaped(line.substr(path_at));
    if (mapping.path[0] != '/') continue;
    if (IsRegular(mapping.path)) mappings.push_back(mapping);
  }
  return mappings;
}

}  // namespace remoe::plugin

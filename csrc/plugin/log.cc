#include "plugin/log.h"

#include <cstdio>

#include "plugin/settings.h"

namespace remoe::plugin {

namespace {

// One line, whatever a path in it holds.
void Say(std::string line, LogLevel at_least) {
  if (GetLogLevel() < at_least) return;
  for (char& each : line) {
    if (static_cast<unsigned char>(each) < 0x20) each = '?';
  }
  std::fprintf(stderr, "remoe-edge: %s\n", line.c_str());
}

}  // namespace

void LogError(const std::string& line) {
  Say(line, LogLevel::kError);
}

void LogInfo(const std::string& line) {
  Say(line, LogLevel::kInfo);
}

}  // namespace remoe::plugin

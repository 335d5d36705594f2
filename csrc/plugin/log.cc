#include "plugin/log.h"

#include <cstdio>

#include "plugin/settings.h"

namespace remoe::plugin {

namespace {

void Say(const std::string& line, LogLevel at_least) {
  const Result<Settings>& settings = GetSettings();
  const LogLevel level = settings.ok() ? settings.value().log : LogLevel::kInfo;
  if (level >= at_least) std::fprintf(stderr, "remoe-edge: %s\n", line.c_str());
}

}  // namespace

void LogError(const std::string& line) {
  Say(line, LogLevel::kError);
}

void LogInfo(const std::string& line) {
  Say(line, LogLevel::kInfo);
}

}  // namespace remoe::plugin

#include "plugin/settings.h"

#include <cstdlib>

#include "base/format.h"

namespace remoe::plugin {

namespace {

std::string Value(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && value[0] != '\0' ? value : otherwise;
}

// One of the choices of a variable.
template <typename T>
struct Choice {
  const char* name;
  T value;
};

template <typename T, size_t n>
Status Choose(const char* variable, const char* otherwise, const Choice<T> (&choices)[n],
              T* value) {
  const std::string chosen = Value(variable, otherwise);
  std::string names;
  for (const Choice<T>& choice : choices) {
    if (chosen == choice.name) {
      *value = choice.value;
      return Status::Ok();
    }
    names += (names.empty() ? "" : ", ") + std::string(choice.name);
  }
  return Status(Code::kInvalidArgument,
                Format("%s is one of %s, not '%s'", variable, names.c_str(), chosen.c_str()));
}

constexpr Choice<LogLevel> kLog[] = {
    {"off", LogLevel::kOff}, {"error", LogLevel::kError}, {"info", LogLevel::kInfo}};

Result<Settings> Read() {
  Settings settings;
  Result<CacheAmount> cache = CacheAmount::Parse(Value("REMOE_CACHE", "auto"));
  if (!cache.ok()) {
    return Status(Code::kInvalidArgument, "REMOE_CACHE: " + cache.status().message());
  }
  settings.cache = cache.value();
  settings.policy = Value("REMOE_POLICY", settings.policy);
  settings.routers = Value("REMOE_ROUTERS", "off");
  if (settings.routers == "off") settings.routers.clear();
  settings.profile = Value("REMOE_PROFILE", "");
  settings.status = Value("REMOE_STATUS", settings.status);
  settings.runtime_folder = Value("XDG_RUNTIME_DIR", "");
  constexpr Choice<PrefetchMode> kPrefetch[] = {
      {"auto", PrefetchMode::kAuto}, {"on", PrefetchMode::kOn}, {"off", PrefetchMode::kOff}};
  constexpr Choice<Repack> kRepack[] = {
      {"auto", Repack::kAsProgram}, {"on", Repack::kOn}, {"off", Repack::kOff}};
  REMOE_RETURN_IF_ERROR(Choose("REMOE_PREFETCH", "auto", kPrefetch, &settings.prefetch));
  REMOE_RETURN_IF_ERROR(Choose("REMOE_REPACK", "auto", kRepack, &settings.repack));
  LogLevel log;
  REMOE_RETURN_IF_ERROR(Choose("REMOE_LOG", "info", kLog, &log));
  return settings;
}

}  // namespace

const Result<Settings>& GetSettings() {
  static const Result<Settings> settings = Read();
  return settings;
}

LogLevel GetLogLevel() {
  static const LogLevel level = [] {
    LogLevel chosen = LogLevel::kInfo;
    (void)Choose("REMOE_LOG", "info", kLog, &chosen);  // GetSettings() refuses what it is not
    return chosen;
  }();
  return level;
}

}  // namespace remoe::plugin

// Settings: what the user chose for the plug-in, from environment variables.
//
// A plug-in is loaded by somebody else's program and has no command line, so that it reads the
// environment itself, here and nowhere else. Every variable has a default that works; a value that
// makes no sense is refused by name.
//
// A plain value, read once; any thread.
#ifndef REMOE_PLUGIN_SETTINGS_H_
#define REMOE_PLUGIN_SETTINGS_H_

#include <string>

#include "base/status.h"
#include "plugin/cache_amount.h"
#include "prefetch/governor.h"

namespace remoe::plugin {

enum class Repack { kAsProgram, kOn, kOff };
enum class LogLevel { kOff, kError, kInfo };

struct Settings {
  CacheAmount cache;                            // REMOE_CACHE: 2GiB, 30% or auto
  std::string policy = "reuse-biased";          // REMOE_POLICY
  PrefetchMode prefetch = PrefetchMode::kAuto;  // REMOE_PREFETCH: auto, on or off
  std::string routers;                          // REMOE_ROUTERS: an overlay, or default
  std::string profile;                          // REMOE_PROFILE: a file that `profile` made
  Repack repack = Repack::kAsProgram;           // REMOE_REPACK: auto, on or off
  std::string status = "on";                    // REMOE_STATUS: on, off or a folder
  std::string runtime_folder;                   // XDG_RUNTIME_DIR, for the status
};

// The first call reads them, for good. RETURNS: kInvalidArgument that names the variable.
const Result<Settings>& GetSettings();
// REMOE_LOG: off, error or info. Apart from the others, so that it holds while they are refused.
LogLevel GetLogLevel();

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_SETTINGS_H_

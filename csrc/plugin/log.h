// One line on standard error, beginning with "remoe-edge:", where the user's REMOE_LOG allows it.
//
// The program's own log has another owner, and may be off; what the plug-in has to say must be seen.
// Errors are said at the level "error" and above, facts at "info".
//
// Any thread; a line is written at once.
#ifndef REMOE_PLUGIN_LOG_H_
#define REMOE_PLUGIN_LOG_H_

#include <string>

namespace remoe::plugin {

void LogError(const std::string& line);
void LogInfo(const std::string& line);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_LOG_H_

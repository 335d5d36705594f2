// StatusFiles: how the process' models show themselves to `remoe-edge top`: a file for each, locked
// while the process lives, in a folder that is this user's alone (remoe_edge/telemetry/status.py says
// the format).
//
// One thread looks at every model a few times a second and writes what has changed. Where no folder
// will do, nothing is written, and a line says why, once.
//
// Models leave before they end. One for the process, never destroyed. Any thread.
#ifndef REMOE_PLUGIN_STATUS_FILES_H_
#define REMOE_PLUGIN_STATUS_FILES_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/birthplace.h"
#include "device/streamed_model.h"

namespace remoe::plugin {

class StatusFiles {
 public:
  // `where`: on, off, or a folder. `runtime_folder`: XDG_RUNTIME_DIR or empty.
  StatusFiles(const std::string& where, const std::string& runtime_folder);
  ~StatusFiles();

  void Join(StreamedModel* model);
  void Leave(const StreamedModel* model);

 private:
  struct Shown;
  void LookOn();

  const std::string where_, runtime_folder_;
  std::mutex mutex_;
  Birthplace birthplace_;
  std::vector<std::unique_ptr<Shown>> shown_;
  bool looking_ = false;
};

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_STATUS_FILES_H_

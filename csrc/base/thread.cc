#include "base/thread.h"

#include "base/format.h"

namespace remoe {

Status NoThread(const char* what, const std::system_error& error) {
  return Status(
      Code::kOutOfMemory,
      Format("cannot start a thread that %s: %s (a limit on threads or memory: ulimit -u, "
             "ulimit -v, or the container's)",
             what, error.code().message().c_str()));
}

}  // namespace remoe

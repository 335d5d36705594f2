#include "base/status.h"

#include <system_error>

namespace remoe {

Status Status::Io(std::string what, int error_number) {
  return Status(Code::kIo, std::move(what) + ": " + std::generic_category().message(error_number));
}

}  // namespace remoe

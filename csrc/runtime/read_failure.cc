#include "runtime/read_failure.h"

#include "base/format.h"

namespace remoe {

Status ReadFailure(const ExpertLayer& layer, uint16_t expert, int matrix, const std::string& path,
                   uint64_t offset, const Status& why) {
  return Status(why.code(), Format("layer %d, expert %d, %s, at offset %llu of %s: %s", layer.block,
                                   expert, MatrixName(layer.matrices[matrix].matrix),
                                   static_cast<unsigned long long>(offset), path.c_str(),
                                   why.message().c_str()));
}

}  // namespace remoe

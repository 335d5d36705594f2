// ReadFailure: what to say of a read of an expert's matrix that went wrong: what it was, and where.
//
// One sentence for every source that reads from files, so that whoever sees it finds the layer, the
// expert and the bytes, whichever file they were to come from.
//
// A pure function; owns nothing; any thread.
#ifndef REMOE_RUNTIME_READ_FAILURE_H_
#define REMOE_RUNTIME_READ_FAILURE_H_

#include <cstdint>
#include <string>

#include "base/status.h"
#include "gguf/model_file.h"

namespace remoe {

// `path`: of the file that was read; `why`: what went wrong, whose code is kept.
Status ReadFailure(const ExpertLayer& layer, uint16_t expert, int matrix, const std::string& path,
                   uint64_t offset, const Status& why);

}  // namespace remoe

#endif  // REMOE_RUNTIME_READ_FAILURE_H_

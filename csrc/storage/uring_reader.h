// UringReader: reads through io_uring. Whoever has work submits it, under one lock; one thread
// takes the completions, retries what fell short and starts what waited. Files are registered with
// the ring.
//
// The kernel may refuse a ring (old kernels, containers that filter the call, memory-lock limits):
// then OpenUringReader says why and leaves the files to another backend. Thread-safe as Reader
// says.
#ifndef REMOE_STORAGE_URING_READER_H_
#define REMOE_STORAGE_URING_READER_H_

#include <memory>
#include <vector>

#include "base/status.h"
#include "storage/open_file.h"
#include "storage/reader.h"

namespace remoe {

// Takes `*files` on success, and leaves them as they are on failure (kNotSupported).
Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>* files,
                                                const ReaderOptions& options);

}  // namespace remoe

#endif  // REMOE_STORAGE_URING_READER_H_

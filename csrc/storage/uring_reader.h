// UringReader: reads through io_uring. Whoever has work submits it, under one lock; one thread
// takes the completions, retries what fell short, starts what waited, and tells of what failed.
// Files are registered with the ring where the kernel lets us.
//
// The kernel may refuse a ring (old kernels, containers that filter the calls, limits on memory or
// open files): then OpenUringReader says why and leaves the files to another backend. A ring that
// takes no requests later on fails the reads. Thread-safe as Reader says.
#ifndef REMOE_STORAGE_URING_READER_H_
#define REMOE_STORAGE_URING_READER_H_

#include <memory>
#include <vector>

#include "base/status.h"
#include "storage/open_file.h"
#include "storage/reader.h"

namespace remoe {

// Takes `*files`, but leaves them as they are where there is no ring (kNotSupported).
// kOutOfMemory where the thread for it is not to be had.
Result<std::unique_ptr<Reader>> OpenUringReader(std::vector<OpenFile>* files,
                                                const ReaderOptions& options);

}  // namespace remoe

#endif  // REMOE_STORAGE_URING_READER_H_

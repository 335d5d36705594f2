#include "storage/pread_reader.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/format.h"
#include "base/thread.h"

namespace remoe {
namespace {

constexpr int kDefaultLanes = 4;

}  // namespace

PreadReader::PreadReader(std::vector<OpenFile> files, const ReaderOptions& options)
    : FileReader(std::move(files), options, options.depth > 0 ? options.depth : kDefaultLanes) {}

Result<std::unique_ptr<Reader>> PreadReader::Open(std::vector<OpenFile> files,
                                                  const ReaderOptions& options) {
  std::unique_ptr<PreadReader> reader(new PreadReader(std::move(files), options));
  REMOE_RETURN_IF_ERROR(reader->StartLanes());
  return std::unique_ptr<Reader>(std::move(reader));
}

Status PreadReader::StartLanes() {
  const int n_wanted = queue().depth() + queue().background_depth();
  lanes_.reserve(static_cast<size_t>(n_wanted));
  Status refusal;
  while (refusal.ok() && static_cast<int>(lanes_.size()) < n_wanted) {
    std::thread lane;
    refusal = StartThread("reads", [this] { RunLane(); }, &lane);
    if (refusal.ok()) lanes_.push_back(std::move(lane));
  }
  const int n_lanes = static_cast<int>(lanes_.size());
  if (refusal.ok() || n_lanes == 0) return refusal;
  // Most of them for demand, which somebody waits for.
  const int n_background = std::min(queue().background_depth(), std::max(1, n_lanes / 4));
  queue().Limit(std::max(1, n_lanes - n_background), n_background);
  AddNote(Format("reading with %d threads instead of %d: ", n_lanes, n_wanted) + refusal.message());
  return Status::Ok();
}

PreadReader::~PreadReader() {
  Stop();
  for (std::thread& lane : lanes_) lane.join();
}

void PreadReader::RunLane() {
  while (std::unique_ptr<Operation> operation = queue().Pop()) {
    if (operation->status().ok()) {
      const int fd = files()[static_cast<size_t>(operation->file())].fd();
      int64_t result;
      do {
        result = ::preadv(fd, operation->iovecs(), operation->n_iovecs(),
                          static_cast<off_t>(operation->offset()));
        if (result < 0) result = -errno;
      } while (Advance(*operation, result) == Operation::Next::kAgain);
    }
    queue().Release(*operation);
    queue().Settle(std::move(operation));
  }
}

}  // namespace remoe

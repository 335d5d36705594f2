#include "storage/pread_reader.h"

#include <sys/uio.h>

#include <cerrno>
#include <memory>
#include <utility>

namespace remoe {
namespace {

constexpr int kDefaultLanes = 4;

}  // namespace

PreadReader::PreadReader(std::vector<OpenFile> files, const ReaderOptions& options)
    : FileReader(std::move(files), options, options.depth > 0 ? options.depth : kDefaultLanes) {
  const int n_lanes = queue().depth() + queue().background_depth();
  for (int i = 0; i < n_lanes; ++i) lanes_.emplace_back([this] { RunLane(); });
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

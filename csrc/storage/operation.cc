#include "storage/operation.h"

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <thread>
#include <tuple>
#include <utility>

#include "base/format.h"
#include "base/rounding.h"

namespace remoe {
namespace {

constexpr int kMaxStalls = 100;
constexpr size_t kMaxIovecs = 64;  // well below IOV_MAX

Status Check(const Read& read, const std::vector<OpenFile>& files) {
  if (read.file < 0 || static_cast<size_t>(read.file) >= files.size()) {
    return Status(Code::kInvalidArgument,
                  Format("read of file %d, but %zu are open", read.file, files.size()));
  }
  const OpenFile& file = files[static_cast<size_t>(read.file)];
  if (read.n_bytes == 0 || read.dest == nullptr ||
      reinterpret_cast<uintptr_t>(read.dest) % kPage != read.offset % kPage) {
    return Status(Code::kInvalidArgument,
                  Format("read of %llu bytes at offset %llu of %s into a buffer that is not "
                         "congruent to the file modulo %llu",
                         static_cast<unsigned long long>(read.n_bytes),
                         static_cast<unsigned long long>(read.offset), file.path().c_str(),
                         static_cast<unsigned long long>(kPage)));
  }
  if (read.offset > file.n_bytes() || read.n_bytes > file.n_bytes() - read.offset) {
    return Status(Code::kIo,
                  Format("%s ends at byte %llu: cannot read %llu bytes at offset %llu",
                         file.path().c_str(), static_cast<unsigned long long>(file.n_bytes()),
                         static_cast<unsigned long long>(read.n_bytes),
                         static_cast<unsigned long long>(read.offset)));
  }
  return Status::Ok();
}

}  // namespace

Operation::Operation(std::shared_ptr<Batch> batch, int item, uint64_t offset, uint64_t end,
                     bool direct)
    : batch_(std::move(batch)), items_{item}, offset_(offset), end_(end), direct_(direct) {
  const Read& read = batch_->items[static_cast<size_t>(item)].read;
  background_ = read.background;
  uint8_t* dest = read.dest + (offset - read.offset);
  uint64_t n_bytes = end - offset;
  if (direct) {
    offset_ = RoundDown(offset, kPage);
    dest -= offset - offset_;
    n_bytes = RoundUp(end, kPage) - offset_;
  }
  iovecs_.push_back({dest, n_bytes});
}

Operation::Operation(std::shared_ptr<Batch> batch, int item, Status failure)
    : batch_(std::move(batch)), items_{item}, status_(std::move(failure)) {
  background_ = batch_->items[static_cast<size_t>(item)].read.background;
}

void Operation::Join(const Operation& next) {
  iovecs_.insert(iovecs_.end(), next.iovecs_.begin(), next.iovecs_.end());
  items_.insert(items_.end(), next.items_.begin(), next.items_.end());
  end_ = next.end_;
}

void Operation::Refuse(const OpenFile& file, const char* why, int error_number) {
  status_ = Status::Io(Format("cannot read %llu bytes at offset %llu of %s: %s",
                              static_cast<unsigned long long>(end_ - offset_),
                              static_cast<unsigned long long>(offset_), file.path().c_str(), why),
                       error_number);
}

Operation::Next Operation::Fail(Status status) {
  status_ = std::move(status);
  return Next::kDone;
}

void Operation::Consume(uint64_t n_bytes) {
  offset_ += n_bytes;
  while (n_bytes > 0) {
    iovec& buffer = iovecs_[first_iovec_];
    const uint64_t taken = std::min<uint64_t>(n_bytes, buffer.iov_len);
    buffer.iov_base = static_cast<uint8_t*>(buffer.iov_base) + taken;
    buffer.iov_len -= taken;
    n_bytes -= taken;
    if (buffer.iov_len == 0) ++first_iovec_;
  }
}

Operation::Next Operation::Advance(int64_t result, const OpenFile& file) {
  ++n_attempts_;
  if (result == -EINTR) return Next::kAgain;
  const uint64_t left = end_ - offset_;
  if (result < 0 && (result != -EAGAIN || ++n_stalls_ > kMaxStalls)) {
    return Fail(Status::Io(
        Format("cannot read %llu bytes at offset %llu of %s", static_cast<unsigned long long>(left),
               static_cast<unsigned long long>(offset_), file.path().c_str()),
        static_cast<int>(-result)));
  }
  if (result < 0) {
    std::this_thread::yield();
    return Next::kAgain;
  }
  const auto moved = static_cast<uint64_t>(result);
  moved_bytes_ += moved;
  if (moved >= left) return Next::kDone;
  // A direct read goes on at a page, so what lies beyond the last whole one is read again.
  const uint64_t progress = direct_ ? RoundDown(moved, kPage) : moved;
  if (progress > 0) {
    n_stalls_ = 0;
    Consume(progress);
    return Next::kAgain;
  }
  if (moved == 0 || file.CurrentBytes() < end_) {
    return Fail(
        Status(Code::kIo, Format("%s was truncated: it ends before byte %llu (at open it had "
                                 "%llu bytes)",
                                 file.path().c_str(), static_cast<unsigned long long>(end_),
                                 static_cast<unsigned long long>(file.n_bytes()))));
  }
  if (++n_stalls_ > kMaxStalls) {
    return Fail(Status(Code::kIo, Format("reads at offset %llu of %s deliver less than a page, "
                                         "%d times in a row",
                                         static_cast<unsigned long long>(offset_),
                                         file.path().c_str(), n_stalls_)));
  }
  return Next::kAgain;
}

std::vector<std::unique_ptr<Operation>> PlanOperations(const std::shared_ptr<Batch>& batch,
                                                       const std::vector<OpenFile>& files,
                                                       uint64_t piece_bytes) {
  std::vector<std::unique_ptr<Operation>> pieces;
  for (size_t i = 0; i < batch->items.size(); ++i) {
    const Read& read = batch->items[i].read;
    const int item = static_cast<int>(i);
    Status status = Check(read, files);
    if (!status.ok()) {
      pieces.push_back(std::make_unique<Operation>(batch, item, std::move(status)));
      continue;
    }
    // Pieces of about equal length, cut at page boundaries of the file.
    const uint64_t end = read.offset + read.n_bytes;
    const uint64_t n_pieces = (read.n_bytes + piece_bytes - 1) / piece_bytes;
    const uint64_t step = RoundUp((read.n_bytes + n_pieces - 1) / n_pieces, kPage);
    for (uint64_t begin = read.offset; begin < end;) {
      const uint64_t cut = std::min(end, RoundDown(begin, kPage) + step);
      pieces.push_back(std::make_unique<Operation>(batch, item, begin, cut,
                                                   files[static_cast<size_t>(read.file)].direct()));
      begin = cut;
    }
  }

  // Neighbours in the file, by index into `pieces`; each run of them joins its first in file order.
  std::vector<size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Operation &left = *pieces[a], &right = *pieces[b];
    return std::make_tuple(left.background(), left.file(), left.offset()) <
           std::make_tuple(right.background(), right.file(), right.offset());
  });
  size_t head = pieces.size();
  uint64_t head_bytes = 0;
  for (const size_t at : order) {
    Operation& piece = *pieces[at];
    const uint64_t n_bytes = piece.end() - piece.offset();
    if (head < pieces.size() && piece.status().ok() && pieces[head]->status().ok() &&
        pieces[head]->background() == piece.background() && pieces[head]->file() == piece.file() &&
        pieces[head]->end() == piece.offset() && piece.offset() % kPage == 0 &&
        head_bytes + n_bytes <= piece_bytes &&
        pieces[head]->items().back() != piece.items().front() &&
        pieces[head]->items().size() < kMaxIovecs) {
      pieces[head]->Join(piece);
      head_bytes += n_bytes;
      // The joined operation goes where the earlier of the two was asked for.
      if (at < head) std::swap(pieces[at], pieces[head]);
      pieces[std::max(at, head)].reset();
      head = std::min(at, head);
    } else {
      head = at;
      head_bytes = n_bytes;
    }
  }
  pieces.erase(std::remove(pieces.begin(), pieces.end(), nullptr), pieces.end());
  for (const auto& operation : pieces) {
    for (const int item : operation->items()) ++batch->items[static_cast<size_t>(item)].n_pending;
  }
  return pieces;
}

}  // namespace remoe

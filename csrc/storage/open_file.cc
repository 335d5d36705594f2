#include "storage/open_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <utility>

#include "base/format.h"
#include "base/memory_page.h"
#include "base/rounding.h"

namespace remoe {
namespace {

constexpr size_t kProofBytes = 4096;

// Reads one page the way experts will be read. 0 if that works, else errno: some file systems
// accept the flag at open and refuse the read.
int ProveDirect(int fd, uint64_t offset) {
  const std::unique_ptr<void, decltype(&std::free)> page(
      std::aligned_alloc(kProofBytes, kProofBytes), &std::free);
  if (!page) return ENOMEM;
  ssize_t n;
  do {
    n = ::pread(fd, page.get(), kProofBytes, static_cast<off_t>(offset));
  } while (n < 0 && errno == EINTR);
  return n < 0 ? errno : 0;
}

// Tells the states of a file apart; never 0.
uint64_t StampOf(const struct stat& now) {
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (const int64_t each :
       {static_cast<int64_t>(now.st_ino), static_cast<int64_t>(now.st_dev),
        static_cast<int64_t>(now.st_mtim.tv_sec), static_cast<int64_t>(now.st_mtim.tv_nsec),
        static_cast<int64_t>(now.st_ctim.tv_sec), static_cast<int64_t>(now.st_ctim.tv_nsec)}) {
    for (int shift = 0; shift < 64; shift += 8) {
      hash = (hash ^ (static_cast<uint64_t>(each) >> shift & 0xff)) * 1099511628211ull;
    }
  }
  return hash | 1;
}

bool IsAnother(const struct timespec& one, const struct timespec& other) {
  return one.tv_sec != other.tv_sec || one.tv_nsec != other.tv_nsec;
}

}  // namespace

Result<OpenFile> OpenFile::Open(const std::string& path, const OpenFileOptions& options) {
  OpenFile file;
  file.path_ = path;
  // A pipe would wait for whoever writes; what it is, is looked at below.
  file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd_ < 0) return Status::Io("cannot open " + path, errno);
  if (::fstat(file.fd_, &file.opened_) != 0) return Status::Io("cannot stat " + path, errno);
  if (!S_ISREG(file.opened_.st_mode)) {
    return Status(Code::kInvalidArgument, path + " is not a regular file");
  }
  if (options.direct) {
    int refusal = EINVAL;
    const int fd =
        options.refuse_direct ? -1 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd >= 0) {
      struct stat reopened = {};
      if (::fstat(fd, &reopened) != 0 || reopened.st_ino != file.opened_.st_ino ||
          reopened.st_dev != file.opened_.st_dev) {
        ::close(fd);
        return Status(Code::kIo, path + " was replaced while it was being opened");
      }
      refusal = ProveDirect(fd, options.proof_offset);
    } else if (!options.refuse_direct) {
      refusal = errno;
    }
    if (refusal == 0) {
      ::close(std::exchange(file.fd_, fd));
      file.direct_ = true;
      file.sample_ = SampleOf(file.fd_, file.n_bytes());
      return file;
    }
    if (fd >= 0) ::close(fd);
    file.note_ =
        Format("O_DIRECT refused by %s: %s; reading through the page cache, dropped behind",
               path.c_str(), std::generic_category().message(refusal).c_str());
  }
  // Advice: a kernel that does not take it still reads right.
  (void)::posix_fadvise(file.fd_, 0, 0, POSIX_FADV_RANDOM);
  file.sample_ = SampleOf(file.fd_, file.n_bytes());
  (void)::posix_fadvise(file.fd_, 0, 0, POSIX_FADV_DONTNEED);
  return file;
}

OpenFile::OpenFile(OpenFile&& other) noexcept {
  *this = std::move(other);
}

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(note_, other.note_);
  std::swap(opened_, other.opened_);
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(sample_, other.sample_);
  proven_ = other.proven_.exchange(proven_);
  return *this;
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) ::close(fd_);
}

uint64_t OpenFile::CurrentBytes() const {
  struct stat now = {};
  return ::fstat(fd_, &now) == 0 ? static_cast<uint64_t>(now.st_size) : 0;
}

void OpenFile::DropCache(uint64_t offset, uint64_t n_bytes) const {
  if (direct_) return;
  // The kernel drops whole pages only, and its pages may be larger than ours.
  const uint64_t page = MemoryPageBytes();
  const uint64_t begin = RoundDown(offset, page);
  const uint64_t end = RoundUp(offset + n_bytes, page);
  (void)::posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                        POSIX_FADV_DONTNEED);
}

std::optional<uint64_t> OpenFile::SampleOf(int fd, uint64_t n_bytes) {
  // A small file is read whole, so that no change of it is missed. Of a large one some pages are,
  // the first and the last among them: whoever writes another model there changes nearly all.
  constexpr uint64_t kWholeBytes = 16 << 20, kPieceBytes = 1 << 20, kSampled = 256;
  const bool is_whole = n_bytes <= kWholeBytes;
  const uint64_t size = is_whole ? kPieceBytes : kProofBytes;
  const uint64_t n_pieces = (n_bytes + size - 1) / size;
  const uint64_t n_read = is_whole ? n_pieces : kSampled;
  const std::unique_ptr<void, decltype(&std::free)> piece(std::aligned_alloc(kProofBytes, size),
                                                          &std::free);
  if (!piece) return std::nullopt;
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (uint64_t i = 0; i < n_read; ++i) {
    const uint64_t at = is_whole ? i : i * (n_pieces - 1) / (n_read - 1);
    ssize_t n;
    do {
      n = ::pread(fd, piece.get(), size, static_cast<off_t>(at * size));
    } while (n < 0 && errno == EINTR);
    if (n < 0) return std::nullopt;
    const auto* bytes = static_cast<const uint8_t*>(piece.get());
    for (ssize_t b = 0; b < n; ++b) hash = (hash ^ bytes[b]) * 1099511628211ull;
  }
  return hash;
}

bool OpenFile::SampleIsAsBefore(int fd, const struct stat& now) const {
  if (proven_ == StampOf(now)) return true;
  if (!sample_ || SampleOf(fd, n_bytes()) != sample_) return false;
  proven_ = StampOf(now);
  return true;
}

Status OpenFile::CheckUnchanged() const {
  struct stat now = {};
  if (::fstat(fd_, &now) != 0) return Status::Io("cannot stat " + path_, errno);
  if (now.st_size < opened_.st_size) {
    return Status(Code::kIo, Format("%s was truncated: %lld bytes are left of %lld", path_.c_str(),
                                    static_cast<long long>(now.st_size),
                                    static_cast<long long>(opened_.st_size)));
  }
  // Whoever writes may set st_mtim back, as `rsync --inplace --times` does; st_ctim nobody can.
  const bool is_touched =
      IsAnother(now.st_mtim, opened_.st_mtim) || IsAnother(now.st_ctim, opened_.st_ctim);
  if (now.st_size != opened_.st_size || (is_touched && !SampleIsAsBefore(fd_, now))) {
    return Status(Code::kIo, path_ + " was modified while it was in use; load it again");
  }
  if (::stat(path_.c_str(), &now) != 0) {
    // No name leads to the file any more; what is open is read on.
    if (errno == ENOENT || errno == ENOTDIR || errno == EACCES || errno == ELOOP) {
      return Status::Ok();
    }
    return Status::Io("cannot stat " + path_, errno);
  }
  if (now.st_ino != opened_.st_ino || now.st_dev != opened_.st_dev) {
    const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool is_same = fd >= 0 && now.st_size == opened_.st_size && SampleIsAsBefore(fd, now);
    if (fd >= 0) ::close(fd);
    if (is_same) return Status::Ok();
    return Status(Code::kIo, path_ +
                                 " was replaced by another file while it was in use; "
                                 "load it again");
  }
  return Status::Ok();
}

}  // namespace remoe

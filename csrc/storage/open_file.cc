#include "storage/open_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <utility>

#include "base/format.h"
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

}  // namespace

Result<OpenFile> OpenFile::Open(const std::string& path, const OpenFileOptions& options) {
  OpenFile file;
  file.path_ = path;
  file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
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
      return file;
    }
    if (fd >= 0) ::close(fd);
    file.note_ =
        Format("O_DIRECT refused by %s: %s; reading through the page cache, dropped behind",
               path.c_str(), std::generic_category().message(refusal).c_str());
  }
  // Advice: a kernel that does not take it still reads right.
  (void)::posix_fadvise(file.fd_, 0, 0, POSIX_FADV_RANDOM);
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
  static const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = RoundDown(offset, page);
  const uint64_t end = RoundUp(offset + n_bytes, page);
  (void)::posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                        POSIX_FADV_DONTNEED);
}

Status OpenFile::CheckUnchanged() const {
  struct stat now = {};
  if (::fstat(fd_, &now) != 0) return Status::Io("cannot stat " + path_, errno);
  if (now.st_size < opened_.st_size) {
    return Status(Code::kIo, Format("%s was truncated: %lld bytes are left of %lld", path_.c_str(),
                                    static_cast<long long>(now.st_size),
                                    static_cast<long long>(opened_.st_size)));
  }
  if (now.st_size != opened_.st_size || now.st_mtim.tv_sec != opened_.st_mtim.tv_sec ||
      now.st_mtim.tv_nsec != opened_.st_mtim.tv_nsec) {
    return Status(Code::kIo, path_ + " was modified while it was in use; load it again");
  }
  if (::stat(path_.c_str(), &now) != 0) {
    if (errno == ENOENT) return Status::Ok();
    return Status::Io("cannot stat " + path_, errno);
  }
  if (now.st_ino != opened_.st_ino || now.st_dev != opened_.st_dev) {
    return Status(Code::kIo, path_ +
                                 " was replaced by another file while it was in use; "
                                 "load it again");
  }
  return Status::Ok();
}

}  // namespace remoe

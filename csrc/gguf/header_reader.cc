#include "gguf/header_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/format.h"

namespace remoe {
namespace {

constexpr uint64_t kFirstReadBytes = 256 << 10;

}  // namespace

std::string Quote(const std::string& text) {
  constexpr size_t kMost = 80;
  std::string quoted = "'";
  for (size_t i = 0; i < std::min(text.size(), kMost); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    quoted += c >= 0x20 && c < 0x7f ? std::string(1, text[i]) : Format("\\x%02x", c);
  }
  return quoted + (text.size() > kMost ? "...'" : "'");
}

Result<HeaderReader> HeaderReader::Open(const std::string& path) {
  HeaderReader reader;
  reader.path_ = path;
  // O_NONBLOCK: opening a FIFO must not wait for a writer. It means nothing to regular files.
  reader.fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (reader.fd_ < 0) return Status::Io("cannot open " + path, errno);
  struct stat info;
  if (fstat(reader.fd_, &info) != 0) return Status::Io("cannot examine " + path, errno);
  if (!S_ISREG(info.st_mode)) {
    return Status(Code::kInvalidArgument,
                  path + " is not a regular file; give the path of a GGUF file");
  }
  reader.file_bytes_ = static_cast<uint64_t>(info.st_size);
  return reader;
}

HeaderReader::HeaderReader(HeaderReader&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(other.fd_),
      file_bytes_(other.file_bytes_),
      position_(other.position_),
      bytes_(std::move(other.bytes_)) {
  other.fd_ = -1;
}

HeaderReader::~HeaderReader() {
  if (fd_ >= 0) close(fd_);
}

Status HeaderReader::Corrupt(const std::string& problem) const {
  return Status(Code::kCorrupt,
                Format("%s: offset %" PRIu64 ": %s", path_.c_str(), position_, problem.c_str()));
}

Status HeaderReader::Need(const char* what, uint64_t n) {
  if (n > file_bytes_ - position_) {
    return Corrupt(Format("%s needs %" PRIu64 " bytes and the file has %" PRIu64
                          " left; it is damaged or was not downloaded whole",
                          what, n, file_bytes_ - position_));
  }
  if (n > kMaxHeaderBytes || position_ + n > kMaxHeaderBytes) {
    return Corrupt(Format("%s reaches beyond %" PRIu64 " MiB of header, more than any model has",
                          what, kMaxHeaderBytes >> 20));
  }
  const uint64_t end = position_ + n;
  uint64_t have = bytes_.size();
  if (end <= have) return Status::Ok();
  const uint64_t want =
      std::min({std::max({end, 2 * have, kFirstReadBytes}), file_bytes_, kMaxHeaderBytes});
  bytes_.resize(want);
  while (have < want) {
    const ssize_t got = pread(fd_, &bytes_[have], want - have, static_cast<off_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Status::Io(Format("cannot read %s at offset %" PRIu64, path_.c_str(), have), errno);
    }
    if (got == 0) return Corrupt("the file became shorter while it was read");
    have += static_cast<uint64_t>(got);
  }
  return Status::Ok();
}

Status HeaderReader::U32(const char* what, uint32_t* value) {
  REMOE_RETURN_IF_ERROR(Need(what, sizeof(*value)));
  std::memcpy(value, bytes_.data() + position_, sizeof(*value));
  position_ += sizeof(*value);
  return Status::Ok();
}

Status HeaderReader::U64(const char* what, uint64_t* value) {
  REMOE_RETURN_IF_ERROR(Need(what, sizeof(*value)));
  std::memcpy(value, bytes_.data() + position_, sizeof(*value));
  position_ += sizeof(*value);
  return Status::Ok();
}

Status HeaderReader::String(const char* what, uint64_t max_bytes, std::string* value) {
  uint64_t length = 0;
  REMOE_RETURN_IF_ERROR(U64(what, &length));
  REMOE_RETURN_IF_ERROR(Need(what, length));
  if (length > max_bytes) {
    return Corrupt(Format("%s is %" PRIu64 " bytes long, at most %" PRIu64 " are allowed", what,
                          length, max_bytes));
  }
  value->assign(bytes_, position_, length);
  position_ += length;
  return Status::Ok();
}

Status HeaderReader::Skip(const char* what, uint64_t n_bytes) {
  REMOE_RETURN_IF_ERROR(Need(what, n_bytes));
  position_ += n_bytes;
  return Status::Ok();
}

std::string HeaderReader::Take(uint64_t begin, uint64_t end) {
  bytes_.resize(end);
  bytes_.erase(0, begin);
  bytes_.shrink_to_fit();
  return std::move(bytes_);
}

}  // namespace remoe

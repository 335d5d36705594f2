// OpenFile: one regular file, open for random reads that stay out of the page cache.
//
// O_DIRECT is used where a test read proves it; elsewhere reads are buffered and the caller drops
// the cache behind each one with DropCache(). The file's identity at open is kept, so that a file
// that is replaced, modified or cut short under a running engine can be told from a failing disk.
//
// Owns the descriptor. Immutable once open but for what CheckUnchanged() remembers; safe to share
// between threads.
#ifndef REMOE_STORAGE_OPEN_FILE_H_
#define REMOE_STORAGE_OPEN_FILE_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"

namespace remoe {

struct OpenFileOptions {
  bool direct = true;          // try O_DIRECT
  uint64_t proof_offset = 0;   // of the page that proves it; a multiple of 4096
  bool refuse_direct = false;  // tests only: behave as a file system without it
};

class OpenFile {
 public:
  // kIo naming the path if it cannot be opened; kInvalidArgument if it is not a regular file.
  static Result<OpenFile> Open(const std::string& path, const OpenFileOptions& options);

  OpenFile(OpenFile&& other) noexcept;
  OpenFile& operator=(OpenFile&& other) noexcept;
  ~OpenFile();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  uint64_t n_bytes() const { return static_cast<uint64_t>(opened_.st_size); }  // at open
  bool direct() const { return direct_; }
  // Why O_DIRECT was wished for and is not used; "" if it is, or was not asked for.
  const std::string& note() const { return note_; }

  // How long the file is now; 0 if that cannot be found out.
  uint64_t CurrentBytes() const;
  // Tells the kernel that the pages of this span will not be read again. Buffered files only.
  void DropCache(uint64_t offset, uint64_t n_bytes) const;
  // kIo if the path now names another file, or the file was modified. A file that was only unlinked
  // is unchanged: its bytes are still there. So is one that was touched, copied up by an overlay file
  // system or put there again, where a sample of its pages is as it was: of files up to 1 MiB all of
  // them, of larger ones 256 that lie evenly apart.
  Status CheckUnchanged() const;

 private:
  OpenFile() = default;
  // Of the sampled pages, through a descriptor that may be direct. nullopt when they cannot be read.
  static std::optional<uint64_t> SampleOf(int fd, uint64_t n_bytes);
  // The same of the file that `now` tells of, read once for each state that the file is found in.
  bool SampleIsAsBefore(int fd, const struct stat& now) const;

  std::string path_;
  std::string note_;
  struct stat opened_ = {};
  std::optional<uint64_t> sample_;
  mutable std::atomic<uint64_t> proven_{0};  // the stamp of a state whose sample was as before
  int fd_ = -1;
  bool direct_ = false;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_OPEN_FILE_H_

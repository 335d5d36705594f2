#include "storage/reader.h"

#include <utility>

#include "base/format.h"
#include "storage/open_file.h"
#include "storage/pread_reader.h"
#include "storage/uring_reader.h"

namespace remoe {
namespace {

constexpr int kMaxDepth = 256;

Status Check(const ReaderOptions& options) {
  const bool known =
      options.backend == "auto" || options.backend == "io_uring" || options.backend == "pread";
  if (!known) {
    return Status(Code::kInvalidArgument,
                  "unknown storage backend \"" + options.backend + "\": auto, io_uring or pread");
  }
  if (options.depth < 0 || options.depth > kMaxDepth || options.background_depth < 1 ||
      options.background_depth > kMaxDepth) {
    return Status(Code::kInvalidArgument,
                  Format("storage depth %d (background %d) is not within 1 to %d", options.depth,
                         options.background_depth, kMaxDepth));
  }
  if (options.piece_bytes == 0 || options.piece_bytes % kPage != 0 ||
      options.proof_offset % kPage != 0) {
    return Status(Code::kInvalidArgument,
                  Format("piece_bytes and proof_offset must be multiples of %llu",
                         static_cast<unsigned long long>(kPage)));
  }
  return Status::Ok();
}

}  // namespace

Result<std::unique_ptr<Reader>> OpenReader(const std::vector<std::string>& paths,
                                           const ReaderOptions& options) {
  REMOE_RETURN_IF_ERROR(Check(options));
  std::vector<OpenFile> files;
  for (const std::string& path : paths) {
    auto file =
        OpenFile::Open(path, {options.direct, options.proof_offset, options.faults.refuse_direct});
    if (!file.ok()) return file.status();
    files.push_back(std::move(file.value()));
  }
  if (options.backend != "pread") {
    auto reader = OpenUringReader(&files, options);
    const bool replaceable =
        options.backend == "auto" && reader.status().code() == Code::kNotSupported;
    if (reader.ok() || !replaceable) return reader;
    // Not a note: the lanes read as well, within the noise. Whoever wants to know why asks for
    // io_uring by name.
  }
  return PreadReader::Open(std::move(files), options);
}

}  // namespace remoe

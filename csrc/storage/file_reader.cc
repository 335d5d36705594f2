#include "storage/file_reader.h"

#include <algorithm>
#include <memory>

namespace remoe {

FileReader::FileReader(std::vector<OpenFile> files, const ReaderOptions& options, int depth)
    : files_(std::move(files)),
      piece_bytes_(options.piece_bytes),
      faults_(options.faults),
      queue_(depth, options.background_depth) {}

void FileReader::Submit(const Read* reads, int n, const ReadDone& done) {
  if (n <= 0) return;
  auto batch = std::make_shared<Batch>();
  batch->done = done;
  batch->items.resize(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) batch->items[static_cast<size_t>(i)].read = reads[i];
  queue_.Push(PlanOperations(batch, files_, piece_bytes_));
  Wake();
}

void FileReader::Promote(uint64_t tag) {
  queue_.Promote(tag);
  Wake();
}

Status FileReader::CheckUnchanged() const {
  for (const OpenFile& file : files_) REMOE_RETURN_IF_ERROR(file.CheckUnchanged());
  return Status::Ok();
}

bool FileReader::direct() const {
  return std::all_of(files_.begin(), files_.end(),
                     [](const OpenFile& file) { return file.direct(); });
}

std::vector<std::string> FileReader::notes() const {
  std::vector<std::string> notes = notes_;
  for (const OpenFile& file : files_) {
    if (!file.note().empty()) notes.push_back(file.note());
  }
  return notes;
}

void FileReader::Stop() {
  queue_.CancelBackground();
  queue_.Drain();
  queue_.Close();
}

Operation::Next FileReader::Advance(Operation& operation, int64_t result) {
  const OpenFile& file = files_[static_cast<size_t>(operation.file())];
  const uint64_t offset = operation.offset();
  result =
      faults_.Apply(operation.file(), offset, operation.iovecs(), operation.n_iovecs(), result);
  if (result > 0) file.DropCache(offset, static_cast<uint64_t>(result));
  return operation.Advance(result, file);
}

}  // namespace remoe

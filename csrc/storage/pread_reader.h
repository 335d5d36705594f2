// PreadReader: a pool of lanes, each a thread that blocks in preadv. The backend that is always
// there. There are background_depth more lanes than depth, so that background reads take none from
// demand.
//
// Thread-safe as Reader says.
#ifndef REMOE_STORAGE_PREAD_READER_H_
#define REMOE_STORAGE_PREAD_READER_H_

#include <memory>
#include <thread>
#include <vector>

#include "storage/file_reader.h"

namespace remoe {

class PreadReader final : public FileReader {
 public:
  // With fewer lanes, and a note, where no more threads are to be had; kOutOfMemory without any.
  static Result<std::unique_ptr<Reader>> Open(std::vector<OpenFile> files,
                                              const ReaderOptions& options);
  ~PreadReader() override;

  const char* backend() const override { return "pread"; }

 private:
  PreadReader(std::vector<OpenFile> files, const ReaderOptions& options);
  Status StartLanes();
  void RunLane();

  std::vector<std::thread> lanes_;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_PREAD_READER_H_

// FileReader: what the backends have in common: the open files, the queue, the faults and the
// notes. A backend adds the threads that take operations from the queue, carry them out and finish
// them.
//
// Thread-safe as Reader says. A backend's destructor calls Stop() before it joins its threads.
#ifndef REMOE_STORAGE_FILE_READER_H_
#define REMOE_STORAGE_FILE_READER_H_

#include <string>
#include <utility>
#include <vector>

#include "storage/faults.h"
#include "storage/open_file.h"
#include "storage/read_queue.h"
#include "storage/reader.h"

namespace remoe {

class FileReader : public Reader {
 public:
  void Submit(const Read* reads, int n, const ReadDone& done) final;
  void Drain() final { queue_.Drain(); }
  int CancelBackground() final { return queue_.CancelBackground(); }
  void Promote(uint64_t tag) final;
  Status CheckUnchanged() const final;
  void SetFaults(const FaultPlan& plan) final { faults_.Set(plan); }
  bool direct() const final;
  int depth() const final { return queue_.depth(); }
  ReaderCounts counts() const final { return queue_.counts(); }
  std::vector<std::string> notes() const final;

  void AddNote(std::string note) { notes_.push_back(std::move(note)); }

 protected:
  FileReader(std::vector<OpenFile> files, const ReaderOptions& options, int depth);

  // Called after operations were queued.
  virtual void Wake() {}
  // Drops the background reads, waits for the rest and closes the queue.
  void Stop();

  // Judges an attempt at `operation`, with the faults laid over its result.
  Operation::Next Advance(Operation& operation, int64_t result);

  const std::vector<OpenFile>& files() const { return files_; }
  FaultInjector& faults() { return faults_; }
  ReadQueue& queue() { return queue_; }

 private:
  const std::vector<OpenFile> files_;
  const uint64_t piece_bytes_;
  std::vector<std::string> notes_;
  FaultInjector faults_;
  ReadQueue queue_;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_FILE_READER_H_

// ReadQueue: which operation starts next, and what is owed to whom when one ends. Demand operations
// start in order, `depth` at a time; background ones only while no demand operation waits,
// `background_depth` at a time and beside the demand ones, so that a demand read never waits for a
// background one to end. Counts, cancellation and the calling of `done` live here too, once for all
// backends.
//
// Thread-safe. `done` is called with no lock held.
#ifndef REMOE_STORAGE_READ_QUEUE_H_
#define REMOE_STORAGE_READ_QUEUE_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "storage/operation.h"
#include "storage/reader.h"

namespace remoe {

class ReadQueue {
 public:
  ReadQueue(int depth, int background_depth) : depth_(depth), background_depth_(background_depth) {}

  void Push(std::vector<std::unique_ptr<Operation>> operations);

  // The operation to start now, or null if none may start.
  std::unique_ptr<Operation> TryPop();
  // Waits for one; null once the queue is closed and empty.
  std::unique_ptr<Operation> Pop();
  // An operation that came from TryPop or Pop has ended: first Release() lets another one start in
  // its place, then Settle() takes it back and tells whoever waits for it.
  void Release(const Operation& operation);
  void Settle(std::unique_ptr<Operation> operation);

  int CancelBackground();
  void Promote(uint64_t tag);
  void Drain();
  // REQUIRES: no Push follows.
  void Close();

  // Lets fewer operations be in flight than it was made for. REQUIRES: none was pushed.
  void Limit(int depth, int background_depth);
  int depth() const;
  int background_depth() const;
  ReaderCounts counts() const;

 private:
  bool StartableLocked() const;
  std::unique_ptr<Operation> TakeLocked();
  // Counts the reads that end with `operation` and returns them, to be told outside the lock.
  std::vector<Batch::Item> SettleLocked(const Operation& operation, const Status& status);

  int depth_;  // guarded by mutex_, as all below
  int background_depth_;
  mutable std::mutex mutex_;
  std::condition_variable work_;     // something may have become startable, or the queue was closed
  std::condition_variable settled_;  // n_owed_ fell to 0
  std::deque<std::unique_ptr<Operation>> demand_;
  std::deque<std::unique_ptr<Operation>> background_;
  int n_demand_ = 0;      // in flight
  int n_background_ = 0;  // in flight
  int n_owed_ = 0;        // operations queued, in flight, or whose `done` has not returned
  bool closed_ = false;
  ReaderCounts counts_;
};

}  // namespace remoe

#endif  // REMOE_STORAGE_READ_QUEUE_H_

// Arrivals: the one queue on which a layer's step waits, whatever its experts come from.
//
// Sources post, each expert's items under the ticket that the step got from Open(); the step waits.
// An answer with an older ticket is late: Post() refuses it, and nothing of it is seen. So a source
// need not be stopped before the next step begins.
//
// Several producers, any thread; one consumer, which also opens and closes.
#ifndef REMOE_RUNTIME_ARRIVALS_H_
#define REMOE_RUNTIME_ARRIVALS_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/status.h"

namespace remoe {

struct Arrival {
  enum class Kind : uint8_t {
    kWeights,     // its slot is filled
    kAllButDown,  // its slot is filled but for down; a final item follows
    kRows,        // computed elsewhere: what its rows give
    kFailed,      // it does not come from there
  };
  Kind kind = Kind::kWeights;
  uint16_t expert = 0;      // within the layer
  std::vector<float> rows;  // of kRows: [n_rows][n_out], in the order of the tokens
  Status status;            // of kFailed
};

class Arrivals {
 public:
  using Ticket = uint64_t;

  // A step begins: whatever an earlier one left is dropped.
  Ticket Open();
  // Nobody waits any more; every ticket is old.
  void Close() { (void)Open(); }
  Ticket ticket() const { return ticket_; }  // the consumer's

  // RETURNS: false, and drops it, when the ticket is old.
  bool Post(Ticket ticket, Arrival arrival);
  // What has no rows.
  bool Post(Ticket ticket, Arrival::Kind kind, uint16_t expert,
            const Status& status = Status::Ok());
  // Many experts whose weights are there already.
  void PostWeights(Ticket ticket, const std::vector<uint16_t>& experts);

  // Blocks until an item is there and appends all there are, in the order of posting. With
  // `all_but_down`, items of that kind end the wait too, when there are no others; without, they
  // are left. RETURNS: whether it had to wait.
  bool Wait(bool all_but_down, std::vector<Arrival>* arrived);
  // Appends the final items that are there.
  void TakeNow(std::vector<Arrival>* arrived);

 private:
  void TakeFinalLocked(std::vector<Arrival>* arrived);
  bool ReadyLocked() const { return !final_.empty() || (partial_awaited_ && !partial_.empty()); }

  Ticket ticket_ = 0;  // written under the mutex, by the consumer alone
  std::mutex mutex_;
  std::condition_variable changed_;
  bool partial_awaited_ = false;
  std::vector<Arrival> final_;
  std::vector<uint16_t> partial_;  // experts
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_ARRIVALS_H_

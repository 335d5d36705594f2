// RemoteSource: experts whose rows workers on other machines compute.
//
// It takes those of a step's experts that are not resident, where the step is small enough for rows
// to be less than weights, and where a peer serves them, the least busy one first. Everything that
// goes wrong ends as a failed arrival, and the step takes the expert from storage: a peer that is
// gone costs time and no answer. About one answer in audit_every is computed again here; where a
// bit differs, the peer is not used any more.
//
// Begin() and End() from the thread that runs steps; the rest from any thread.
#ifndef REMOE_REMOTE_REMOTE_SOURCE_H_
#define REMOE_REMOTE_REMOTE_SOURCE_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "remote/peer.h"
#include "runtime/expert_source.h"

namespace remoe {

class RemoteSource : public ExpertSource {
 public:
  struct Settings {
    int max_tokens = 8;      // of a step, above which weights are fewer bytes than rows
    int audit_every = 1000;  // answers
  };
  RemoteSource(const std::vector<Address>& addresses, Identity identity,
               std::unique_ptr<RowComputer> computer, const Settings& settings);
  ~RemoteSource() override;

  const char* name() const override { return "remote"; }
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  void End() override {}

  // Waits until each peer serves, was refused or cannot be reached. RETURNS: whether all do.
  bool Await(int timeout_ms) const;
  std::vector<Peer::Seen> peers() const;
  // Lines for the user since the last call.
  std::vector<std::string> TakeLines();
  RemoteCounts counts() const { return tallies_.Read(); }

 private:
  void AuditAll();
  void Check(Peer* peer, const Audit& audit);

  const Settings settings_;
  RemoteTallies tallies_;
  Proof proof_;
  uint64_t n_asked_ = 0;  // of the thread that runs steps
  std::string recipe_;

  std::mutex mutex_;  // of these
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  std::optional<std::pair<Peer*, Audit>> audit_;  // one at a time; others meanwhile are left out
  bool ending_ = false;

  std::vector<std::unique_ptr<Peer>> peers_;  // after what their threads use
  std::thread auditor_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_REMOTE_SOURCE_H_

// RemoteSource: experts whose rows workers on other machines compute.
//
// It takes those of a step's experts that are not resident, where the step is small enough for rows
// to be less than weights, and where a peer serves them, the least busy one first. Everything that
// goes wrong ends as a failed arrival, and the step takes the expert from storage: a peer that is
// gone costs time and no answer. About one answer in audit_every is computed again here; where a
// bit differs, the peer is not used any more.
//
// Peers may come and go while steps run, as leases of functions do.
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
    bool hedge = true;       // see Peer::Links
  };
  RemoteSource(const std::vector<Address>& addresses, Identity identity,
               std::unique_ptr<RowComputer> computer, const Settings& settings);
  ~RemoteSource() override;

  const char* name() const override { return "remote"; }
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  void End() override {}

  // Waits until each peer serves, was refused or cannot be reached. RETURNS: whether all do.
  bool Await(int timeout_ms) const;
  struct Seen {
    Peer::Seen peer;
    RemoteCounts counts;  // of this peer alone
  };
  std::vector<Seen> peers() const;
  // From now on these, each address once. A peer that is named before and after is kept as it is;
  // asks of one that is not any more come back as failed, and the step takes them from storage.
  void SetPeers(const std::vector<Address>& addresses);
  // Lines for the user since the last call.
  std::vector<std::string> TakeLines();
  // Of all peers, those that are gone included.
  RemoteCounts counts() const;

 private:
  struct Linked {
    std::string address;
    std::unique_ptr<RemoteTallies> tallies;  // outlives the peer
    std::shared_ptr<Peer> peer;
  };
  Linked Link(const Address& address);
  void AuditAll();
  void Check(const std::weak_ptr<Peer>& audited, const Audit& audit);

  const Settings settings_;
  RemoteTallies tallies_;  // of audits, and of peers that are gone
  Proof proof_;
  uint64_t n_asked_ = 0;  // of the thread that runs steps
  std::string recipe_;

  std::mutex mutex_;  // of these
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  // One at a time; others meanwhile are left out.
  std::optional<std::pair<std::weak_ptr<Peer>, Audit>> audit_;
  bool ending_ = false;

  mutable std::mutex peers_mutex_;  // of the list; taken before any other
  std::vector<Linked> peers_;       // after what their threads use
  std::thread auditor_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_REMOTE_SOURCE_H_

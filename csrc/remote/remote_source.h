// RemoteSource: experts that workers on other machines compute, or send.
//
// It takes those of a step's experts that are not resident where a peer serves them, the least busy
// one first: of a few tokens always, of more where rows are fewer bytes than weights, at measured
// bandwidths. Everything that goes wrong ends as a failed arrival, and the step takes the expert
// from storage: a peer that is gone costs time and no answer. About one answer in audit_every is
// computed again here; where a bit differs, the peer is not used any more. Now and then it finds
// anew what belongs here, what with a peer and what on storage (ExpertPlacement).
//
// Begin() and End() from the thread that runs steps; the rest from any thread.
#ifndef REMOE_REMOTE_REMOTE_SOURCE_H_
#define REMOE_REMOTE_REMOTE_SOURCE_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "remote/expert_placement.h"
#include "remote/peer.h"
#include "remote/peer_reader.h"
#include "runtime/expert_source.h"

namespace remoe {

class RemoteSource : public ExpertSource, public WeightsElsewhere {
 public:
  struct Settings {
    int max_tokens = 8;                     // of a step whose rows are sent whatever they cost
    int audit_every = 1000;                 // answers
    bool hedge = true;                      // see Peer::Links
    uint64_t move_bytes_per_s = 64u << 20;  // of experts that become hot here while a peer has them
  };
  // What of this machine it has to know.
  struct Local {
    PeerReader* reader = nullptr;        // null where peers send no weights to us
    PeerReader* checking = nullptr;      // of what checks peers, where the file has no experts
    bool has_experts = true;             // on storage
    std::vector<uint64_t> expert_bytes;  // by layer
    int n_experts = 0;                   // of a layer
    // How the cache is now: it may have grown or shrunk since. From the thread that runs steps.
    std::function<void(ExpertPlacement::Local*)> look;
  };
  // kOutOfMemory where no thread is to be had for checking peers.
  static Result<std::unique_ptr<RemoteSource>> Make(const std::vector<Address>& addresses,
                                                    std::shared_ptr<const TlsKeys> keys,
                                                    Identity identity,
                                                    std::unique_ptr<RowComputer> computer,
                                                    Local local, const Settings& settings);
  ~RemoteSource() override;

  const char* name() const override { return "remote"; }
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  void End() override {}

  double ExpectedUs(const Matrix& matrix, uint64_t n_bytes) const override;
  bool Fetch(const Matrix& matrix, uint64_t n_bytes, uint8_t* dest,
             const std::function<void(const Status&)>& done) override;

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
  // Whether connections are encrypted, and may so lead to other machines.
  bool has_keys() const { return keys_ != nullptr; }
  // Experts of all layers that no peer serves.
  int n_unserved() const;
  // Lines for the user since the last call.
  std::vector<PeerLine> TakeLines();
  // Of all peers, those that are gone included.
  RemoteCounts counts() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Linked {
    std::string address;
    std::shared_ptr<RemoteTallies> tallies;
    std::shared_ptr<Peer> peer;
  };
  RemoteSource(std::shared_ptr<const TlsKeys> keys, Identity identity,
               std::unique_ptr<RowComputer> computer, Local local, const Settings& settings);
  Linked Link(const Address& address);
  void End(std::vector<Linked>* gone);
  int RecipeOf(const Demand& demand, bool* is_new);
  bool RowsPay(const Demand& demand, const Peer& peer, int n_rows) const;
  // Whether storage would long have the expert when the peer answers.
  bool TooSlow(int layer, Peer* peer);
  // Whether the expert is to be read into the local cache now, though a peer has it.
  bool Admits(int layer, int expert);
  void Place();
  Peer* LeastBusy(int recipe, int layer, uint16_t expert, int n_rows) const;
  void CheckAll();
  void CheckAnswer(const std::weak_ptr<Peer>& audited, const Audit& audit);
  void CheckWeights(const std::weak_ptr<Peer>& holder, const ServedExpert& expert);

  const Settings settings_;
  const Local local_;
  const std::shared_ptr<const TlsKeys> keys_;
  RemoteTallies tallies_;  // of audits and checks, and of peers that are gone
  Proof proof_;
  // Of the thread that runs steps.
  uint64_t n_asked_ = 0, n_too_slow_ = 0;
  std::string recipe_;
  ExpertPlacement placement_;
  Clock::time_point placed_, refilled_;
  double allowance_bytes_ = 0;
  ExpertPlacement::Local cache_;

  std::mutex mutex_;  // of these
  std::condition_variable changed_;
  PeerLines lines_;
  // One at a time; others meanwhile are left out.
  std::optional<std::pair<std::weak_ptr<Peer>, Audit>> audit_;
  std::deque<std::pair<std::weak_ptr<Peer>, ServedExpert>> announced_;
  bool ending_ = false;

  mutable std::mutex peers_mutex_;  // of the list; taken before any other
  std::vector<Linked> peers_;       // after what their threads use
  std::thread checker_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_REMOTE_SOURCE_H_

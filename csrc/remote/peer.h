// Peer: one worker, as an engine sees it: connected, proven, asked.
//
//     connecting -> checking -> serving -> (lost) connecting ...
//                      \-> refused, for good: another program, model or weight, or a wrong bit
//
// Its thread connects, compares identities and the sums of all experts, then has the worker compute
// canary rows for each kind of layer and compares bits. Only then is it asked. While it serves, the
// thread posts answers to the step's arrivals; an expert whose answer is late, or that the worker
// is too busy for, or that was lost with the connection, is posted as failed, and the step takes it
// from storage. Ask() and Fetch() never wait; the calls are for any thread.
#ifndef REMOE_REMOTE_PEER_H_
#define REMOE_REMOTE_PEER_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "remote/comings.h"
#include "remote/frame_stream.h"
#include "remote/latency.h"
#include "remote/peer_lines.h"
#include "remote/proof.h"
#include "remote/remote_counts.h"
#include "remote/tls.h"
#include "remote/transfer_rate.h"
#include "remote/troubles.h"
#include "remote/wake.h"
#include "runtime/arrivals.h"

namespace remoe {

// An answer that is to be computed again here.
struct Audit {
  int recipe = 0;
  int layer = 0;
  uint16_t expert = 0;
  int n_rows = 0;
  std::vector<float> rows, answer;
};

class Peer : public std::enable_shared_from_this<Peer> {
 public:
  struct Links {
    Proof* proof = nullptr;
    std::shared_ptr<RemoteTallies> tallies;
    std::shared_ptr<const TlsKeys> keys;  // null where nothing is encrypted
    bool has_copy = true;                 // storage has what a peer does not answer
    bool hedge = true;  // and stands in for an answer that is late; without, only for a lost one
    std::function<void(PeerLine)> tell;  // the user; called with a lock held, so it calls no peer
    std::function<void(std::weak_ptr<Peer>, Audit)> audit;
    std::function<void(std::weak_ptr<Peer>, ServedExpert)>
        check;  // what it holds from now on: Admit() or Refuse()
  };
  // All outlive this. It does nothing before Start().
  Peer(Address address, Links links) : address_(std::move(address)), links_(std::move(links)) {}
  ~Peer();
  // Where no thread is to be had for it, it is as good as refused, and says so.
  void Start();
  // Has it end soon, of which the destructor waits for the rest.
  void Stop();

  struct Wanted {
    int recipe = 0;
    int layer = 0;
    uint16_t expert = 0;
    int n_rows = 0;
    std::vector<float> rows;
    Arrivals* arrivals = nullptr;
    Arrivals::Ticket ticket = 0;
    bool audit = false;
  };
  // How many rows are under way, or -1 where this ask would not be taken now.
  int Load(int recipe, int layer, uint16_t expert, int n_rows) const;
  // RETURNS: whether an arrival will be posted for it.
  bool Ask(Wanted wanted);

  // A matrix of an expert; its bytes are written to dest until done() is called, and not after.
  struct Weights {
    int layer = 0;
    uint16_t expert = 0;
    int matrix = 0;
    uint32_t n_bytes = 0;
    uint8_t* dest = nullptr;
    std::function<void(const Status&)> done;  // from its thread, with no lock held
  };
  // How many bytes are under way, or -1 where this would not be taken now.
  int64_t FetchLoad(int layer, uint16_t expert) const;
  // RETURNS: whether done() will be called.
  bool Fetch(Weights weights);

  // There is a new recipe.
  void Notice() { wake_.Raise(); }
  // It was not asked, since storage is faster.
  void PassedBy() { Bad(Troubles::kSlow); }
  // Nothing of this worker is used any more.
  void Refuse(const std::string& why);
  // What it said that it holds now is what our file has.
  void Admit(const ServedExpert& expert);
  // Has it hold these, as far as it lets engines choose.
  void Wish(const std::vector<WishedExpert>& wish);

  // Whether it serves with all recipes proven, was refused, or could not be reached.
  bool settled() const;
  // How long it usually takes to answer a few rows; 0 while it is not known.
  int64_t answer_us();
  // Measured; 0 while it is not known.
  double bytes_per_s() const { return rate_.bytes_per_s(); }
  struct Seen {
    std::string address, state, why;
    int n_experts = 0;
    int capacity = 0;  // experts that engines may choose
    bool sends_weights = false;
  };
  Seen seen() const;
  // Layers and experts.
  std::set<std::pair<int, int>> served() const;

 private:
  using Clock = std::chrono::steady_clock;
  enum class State { kConnecting, kChecking, kServing, kRefused };
  struct Pending {
    Wanted wanted;
    Clock::time_point asked, late;
    int rows_before = 0;  // under way when it was asked
    bool given_up = false;
    std::vector<float>* canary = nullptr;  // where a canary's answer goes
  };
  struct Fetching {
    Weights weights;
    Clock::time_point asked, late;
    uint32_t received = 0;
  };
  void Run();
  Status Session();
  Status ServeUntilLost();
  int PollTimeoutMs() const;
  void LoseAll(const std::string& why);
  void Pause(int ms);
  void Bad(Troubles::Kind kind);
  void TellStandingLocked();
  std::string Name() const;
  std::string NameOf(int layer, int expert) const;
  // --- peer_proof.cc ---
  Status Greet(FrameStream* stream, Welcome* welcome);
  Status CheckSums(const Welcome& welcome);
  Status TellRecipes();
  Status ProveKinds();
  Status Canary(const KnownRecipe& recipe, int number, uint16_t expert, int n_rows);
  // --- peer_answers.cc ---
  Status Poll(int timeout_ms);
  Status Take(Frame frame);
  Status TakeAnswer(Pending pending, Frame frame);
  Status TakeWeights(const Frame& frame);
  Status TakeChange(const Frame& frame);
  void EndFetch(uint64_t request, const Status& status);
  void GiveUpLate();
  void PostFailed(const Wanted& wanted, const std::string& why);
  bool CanFetchLocked() const;

  const Address address_;
  const Links links_;
  Wake wake_, stop_;  // stop_: raised once, with stopping_
  // Its thread's alone:
  bool woken_ = false;        // since it last looked what is to be done
  std::vector<Frame> early_;  // that came with the welcome
  Comings comings_;
  std::string standing_;  // a line: whether it is there
  std::atomic<bool> stopping_{false};
  TransferRate rate_;

  mutable std::mutex mutex_;  // of all below
  State state_ = State::kConnecting;
  std::string why_;
  bool unreachable_ = false;
  std::unique_ptr<FrameStream> stream_;
  uint32_t credits_ = 0, max_rows_ = 0, capacity_ = 0;
  bool sends_weights_ = false;
  std::set<std::pair<int, int>> served_;
  std::set<std::pair<int, int>> announced_;  // held, and not checked yet
  std::set<std::string> proven_kinds_;       // on this connection
  std::vector<bool> proven_;                 // by recipe: told, and of a kind that is proven
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, Fetching> fetching_;
  int64_t fetching_bytes_ = 0;
  int pending_rows_ = 0;
  std::vector<WishedExpert> wish_;
  uint64_t next_request_ = 1;
  Latency latency_;
  Troubles troubles_;
  double row_us_ = 0;   // that one more row takes, of many
  int unanswered_ = 0;  // given up since the last answer
  Clock::time_point heard_;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace remoe

#endif  // REMOE_REMOTE_PEER_H_

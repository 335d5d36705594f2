// Peer: one worker, as an engine sees it: connected, proven, asked.
//
//     connecting -> checking -> serving -> (lost) connecting ...
//                      \-> refused, for good: another program, model or weight, or a wrong bit
//
// Its thread connects, compares identities and the sums of all experts, then has the worker compute
// canary rows for each kind of layer and compares bits. Only then is it asked. While it serves, the
// thread posts answers to the step's arrivals; an expert whose answer is late, or that the worker
// is too busy for, or that was lost with the connection, is posted as failed, and the step takes it
// from storage. What still comes for it is posted too: whichever is first wins.
//
// Ask() from the thread that runs steps, which never waits; the rest from any thread.
#ifndef REMOE_REMOTE_PEER_H_
#define REMOE_REMOTE_PEER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "remote/frame_stream.h"
#include "remote/latency.h"
#include "remote/proof.h"
#include "remote/remote_counts.h"
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
    RemoteTallies* tallies = nullptr;
    bool hedge = true;  // whether storage stands in for an answer that is late
    std::function<void(const std::string&)> tell;  // a line for the user
    std::function<void(std::weak_ptr<Peer>, Audit)> audit;
  };
  // All outlive this.
  Peer(Address address, Links links);
  ~Peer();

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
  // How many asks are under way, or -1 where this one would not be taken now.
  int Load(int recipe, int layer, uint16_t expert, int n_rows) const;
  // RETURNS: whether an arrival will be posted for it.
  bool Ask(Wanted wanted);
  // There is a new recipe.
  void Notice() { wake_.Raise(); }
  // Nothing of this worker is used any more.
  void Refuse(const std::string& why);

  // Whether it serves with all recipes proven, was refused, or could not be reached.
  bool settled() const;
  struct Seen {
    std::string address, state, why;
    int n_experts = 0;
  };
  Seen seen() const;

 private:
  using Clock = std::chrono::steady_clock;
  enum class State { kConnecting, kChecking, kServing, kRefused };
  struct Pending {
    Wanted wanted;
    Clock::time_point asked, late;
    bool given_up = false;
    std::vector<float>* canary = nullptr;  // where a canary's answer goes
  };
  void Run();
  Status Session();
  Status Greet(FrameStream* stream, Welcome* welcome);
  Status CheckSums(const Welcome& welcome);
  Status ServeUntilLost();
  Status TellRecipes();
  Status ProveKind(int number, const KnownRecipe& recipe);
  Status Canary(const KnownRecipe& recipe, int number, uint16_t expert, int n_rows);
  Status Poll(int timeout_ms);
  Status Take(Frame frame);
  Status TakeAnswer(Pending pending, Frame frame);
  void GiveUpLate();
  int PollTimeoutMs() const;
  void LoseAll(const std::string& why);
  void Pause(int ms);
  void SetState(State state, const std::string& why);
  std::string NameOf(int layer, int expert) const;
  void PostFailed(const Wanted& wanted, const std::string& why);

  const Address address_;
  const Links links_;
  Wake wake_;
  std::atomic<bool> stopping_{false};
  std::set<std::string> proven_kinds_;  // on this connection; the thread's

  mutable std::mutex mutex_;  // of all below
  State state_ = State::kConnecting;
  std::string why_;
  bool unreachable_ = false;
  std::unique_ptr<FrameStream> stream_;
  uint32_t credits_ = 0, max_rows_ = 0;
  std::set<std::pair<int, int>> served_;
  std::vector<bool> proven_;  // by recipe
  std::map<uint64_t, Pending> pending_;
  uint64_t next_request_ = 1;
  Latency latency_;
  int unanswered_ = 0;  // given up since the last answer
  Clock::time_point heard_;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace remoe

#endif  // REMOE_REMOTE_PEER_H_

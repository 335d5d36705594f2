// WorkerServer: answers asks of many engines for the experts that it holds.
//
// One thread moves frames, one computes, and, where engines choose what is held, one moves experts.
// Engines take turns, one ask or one piece of weights at a time, so that none waits for another's
// whole queue; asks are never merged, because more rows would round otherwise. An engine has as many
// credits as the Welcome says; what goes beyond them, or beyond the memory for waiting asks, is
// answered kBusy at once. Who sends a bad frame loses its connection and nobody else's.
//
// Run() in one thread until Stop(), which may come from a signal handler: asks that wait are still
// answered, new ones are not. Where its threads are not to be had, it says so at once. The rest from any
// thread.
#ifndef REMOE_REMOTE_WORKER_SERVER_H_
#define REMOE_REMOTE_WORKER_SERVER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "remote/frame_stream.h"
#include "remote/refusals.h"
#include "remote/row_computer.h"
#include "remote/tls.h"
#include "remote/wake.h"
#include "wire/handshake.h"

namespace remoe {

struct WorkerCounts {
  uint64_t clients = 0;  // connected now
  uint64_t answers = 0;
  uint64_t rows = 0;
  uint64_t compute_us = 0;
  uint64_t weights_bytes = 0;  // sent
  uint64_t busy = 0;           // asks that were turned away
  uint64_t expired = 0;        // asks that nobody waited for any more
  uint64_t refused = 0;        // connections
  uint64_t experts = 0;        // held now
  uint64_t moved_bytes = 0;    // read because engines wished for it
};

class WorkerServer {
 public:
  struct Limits {
    int clients = 256;
    uint64_t waiting_bytes = 64u << 20;
    uint32_t columns = 1 << 16;  // of a row
    int greeting_ms = 10000;     // until an engine must have said who it is
    int drain_ms = 5000;
    uint64_t move_bytes_per_s = 32u << 20;
  };
  // `computer` and `held` outlive this; `held` is null where what is held never changes, `keys`
  // where nothing is encrypted. Listens from here on.
  static Result<std::unique_ptr<WorkerServer>> Make(const Address& address,
                                                    std::shared_ptr<const TlsKeys> keys,
                                                    Welcome welcome, RowComputer* computer,
                                                    HeldExperts* held, const Limits& limits);
  ~WorkerServer();

  uint16_t port() const { return port_; }
  Status Run();
  void Stop() {
    stopping_ = true;
    wake_.Raise();
  }
  WorkerCounts counts() const;
  // Lines for the user since the last call.
  std::vector<std::string> TakeLines();

 private:
  using Clock = std::chrono::steady_clock;
  using Key = std::pair<uint32_t, uint32_t>;  // layer, expert
  struct Ask {
    Frame frame;
    Clock::time_point expires;
    RowComputer::Learned recipe;  // as it was when this was asked
    uint64_t sent = 0;            // of a fetch: bytes
  };
  struct Client {
    Client(std::unique_ptr<Channel> channel, const FrameLimits& limits)
        : stream(std::move(channel), limits), since(Clock::now()) {}
    FrameStream stream;
    Clock::time_point since;
    bool greeted = false, closing = false;  // closing: once all is sent
    bool refused = false;                   // nothing is understood: what comes is dropped
    bool gone = false;
    std::map<uint32_t, RowComputer::Learned> recipes;  // by the engine's number, with its layer
    std::map<uint32_t, uint32_t> layer_of;
    std::deque<Ask> asks, fetches;
    int under_way = 0;  // both, the one that computes included
    std::map<Key, float> wish;
  };
  WorkerServer(std::unique_ptr<Listener> listener, std::shared_ptr<const TlsKeys> keys,
               Welcome welcome, RowComputer* computer, HeldExperts* held, const Limits& limits);
  FrameLimits StrangerLimits() const;
  FrameLimits EngineLimits() const;
  void ServeAll();
  void Accept();
  bool MakeRoom();
  void Serve(Client* client);
  void BoundUnfinished();
  void Refuse(Client* client, const std::string& why);
  Status Take(Client* client, Frame frame);
  Status Greet(Client* client, const Frame& hello);
  Status Learn(Client* client, const Frame& frame);
  Status Queue(Client* client, Frame frame);
  Status TakeWish(Client* client, const Frame& frame);
  void ComputeAll();
  void ComputeNext(Client* client, std::unique_lock<std::mutex>* lock);
  std::shared_ptr<Client> NextWithWork();
  void CloseGone();
  bool Drained() const;
  // --- worker_weights.cc ---
  Status QueueFetch(Client* client, Frame frame);
  void SendPiece(Client* client, std::unique_lock<std::mutex>* lock);
  // --- worker_moves.cc ---
  struct Move {
    bool any = false, drops = false;
    Key dropped, added;
  };
  void MoveAll();
  Move NextMove() const;
  void Announce(const HeldChange& change);

  std::unique_ptr<Listener> listener_;  // until Run() ends
  const uint16_t port_;
  const std::shared_ptr<const TlsKeys> keys_;
  const Welcome welcome_;  // experts: those of the beginning
  RowComputer* const computer_;
  HeldExperts* const held_experts_;
  const Limits limits_;
  Wake wake_;
  std::atomic<bool> stopping_{false};

  Clock::time_point accepts_again_;  // Run()'s alone

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_, wished_, idle_;
  std::vector<std::shared_ptr<Client>> clients_;
  std::map<Key, uint64_t> held_;                 // with its sum
  std::map<Key, Clock::time_point> unreadable_;  // not tried again before that
  Key computing_{UINT32_MAX, 0};
  size_t turn_ = 0;
  uint64_t waiting_bytes_ = 0;
  bool ending_ = false;
  WorkerCounts counts_;
  Refusals refusals_;
  std::vector<std::string> lines_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_WORKER_SERVER_H_

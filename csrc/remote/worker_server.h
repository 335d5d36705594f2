// WorkerServer: answers asks of many engines for the experts that it serves.
//
// One thread moves frames, one computes. Engines take turns, one ask at a time, so that none waits
// for another's whole queue; asks are never merged, because more rows would round otherwise. An
// engine has as many credits as the Welcome says; what goes beyond them, or beyond the memory for
// waiting asks, is answered kBusy at once. Who sends a bad frame loses its connection and nobody
// else's.
//
// Run() in one thread until Stop(), which may come from a signal handler: asks that wait are still
// answered, new ones are not. counts() from any thread.
#ifndef REMOE_REMOTE_WORKER_SERVER_H_
#define REMOE_REMOTE_WORKER_SERVER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "remote/frame_stream.h"
#include "remote/row_computer.h"
#include "remote/wake.h"
#include "wire/handshake.h"

namespace remoe {

struct WorkerCounts {
  uint64_t clients = 0;  // connected now
  uint64_t answers = 0;
  uint64_t rows = 0;
  uint64_t busy = 0;     // asks that were turned away
  uint64_t expired = 0;  // asks that nobody waited for any more
  uint64_t refused = 0;  // connections
};

class WorkerServer {
 public:
  struct Limits {
    int clients = 256;
    uint64_t waiting_bytes = 64u << 20;
    int greeting_ms = 10000;  // until an engine must have said who it is
    int drain_ms = 5000;
  };
  // `computer` outlives this. Listens from here on.
  static Result<std::unique_ptr<WorkerServer>> Make(const Address& address, Welcome welcome,
                                                    RowComputer* computer, const Limits& limits);
  ~WorkerServer();

  uint16_t port() const { return listener_->port(); }
  Status Run();
  void Stop() {
    stopping_ = true;
    wake_.Raise();
  }
  WorkerCounts counts() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Ask {
    Frame frame;
    Clock::time_point expires;
  };
  struct Client {
    Client(std::unique_ptr<Channel> channel, const FrameLimits& limits)
        : stream(std::move(channel), limits), since(Clock::now()) {}
    FrameStream stream;
    const Clock::time_point since;
    bool greeted = false, closing = false;  // closing: once all is sent
    bool gone = false;
    std::map<uint32_t, RowComputer::Learned> recipes;  // by the engine's number, with its layer
    std::map<uint32_t, uint32_t> layer_of;
    std::deque<Ask> asks;
    int under_way = 0;  // asks, the one that computes included
  };
  WorkerServer(std::unique_ptr<Listener> listener, Welcome welcome, RowComputer* computer,
               const Limits& limits);
  void Accept();
  void Serve(Client* client);
  Status Take(Client* client, Frame frame);
  Status Greet(Client* client, const Frame& hello);
  Status Learn(Client* client, const Frame& frame);
  Status Queue(Client* client, Frame frame);
  void ComputeAll();
  std::shared_ptr<Client> NextWithAsk();
  void CloseGone();
  bool Drained() const;

  const std::unique_ptr<Listener> listener_;
  const Welcome welcome_;
  RowComputer* const computer_;
  const Limits limits_;
  FrameLimits frame_limits_;
  std::set<std::pair<uint32_t, uint32_t>> served_;
  Wake wake_;
  std::atomic<bool> stopping_{false};

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Client>> clients_;
  size_t turn_ = 0;
  uint64_t waiting_bytes_ = 0;
  bool ending_ = false;
  WorkerCounts counts_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_WORKER_SERVER_H_

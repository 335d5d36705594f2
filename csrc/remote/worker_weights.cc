// How a worker sends weights: in pieces, between which others have their turn.
#include <algorithm>

#include "base/format.h"
#include "remote/worker_frames.h"
#include "remote/worker_server.h"

namespace remoe {

namespace {

constexpr size_t kPieceBytes = 256 << 10;  // so that no row waits behind many

}  // namespace

Status WorkerServer::QueueFetch(Client* client, Frame frame) {
  const bool known = welcome_.sends_weights && held_.count({frame.layer, frame.expert}) > 0 &&
                     frame.rows > 0 && frame.recipe < 16 &&
                     frame.rows == computer_->MatrixBytes(static_cast<int>(frame.layer),
                                                          static_cast<int>(frame.recipe));
  if (!known) {
    return client->stream.Send(
        Reply(frame, FrameKind::kFailed,
              Format("weights of layer %u, expert %u are not sent", frame.layer, frame.expert)));
  }
  if (client->under_way >= static_cast<int>(welcome_.credits) || stopping_) {
    counts_.busy++;
    return client->stream.Send(Reply(frame, FrameKind::kBusy));
  }
  client->under_way++;
  client->fetches.push_back({std::move(frame), Clock::time_point::max(), {}});
  changed_.notify_one();
  return Status::Ok();
}

void WorkerServer::SendPiece(Client* client, std::unique_lock<std::mutex>* lock) {
  Ask fetch = std::move(client->fetches.front());
  client->fetches.pop_front();
  Frame piece = Reply(fetch.frame, FrameKind::kWeights);
  piece.recipe = fetch.frame.recipe;
  piece.rows = fetch.frame.rows;
  piece.columns = static_cast<uint32_t>(fetch.sent);
  piece.payload.resize(std::min<uint64_t>(kPieceBytes, fetch.frame.rows - fetch.sent));
  computing_ = {fetch.frame.layer, fetch.frame.expert};
  const bool held = held_.count(computing_) > 0;
  lock->unlock();
  const Status status = held ? computer_->CopyWeights(static_cast<int>(piece.layer),
                                                      static_cast<uint16_t>(piece.expert),
                                                      static_cast<int>(piece.recipe), fetch.sent,
                                                      piece.payload.size(), piece.payload.data())
                             : Status(Code::kIo, "it holds that expert no longer");
  lock->lock();
  computing_.first = UINT32_MAX;
  idle_.notify_all();
  fetch.sent += piece.payload.size();
  const bool over = !status.ok() || fetch.sent == fetch.frame.rows;
  if (over) client->under_way--;
  if (client->gone) return;
  counts_.weights_bytes += status.ok() ? piece.payload.size() : 0;
  const Frame reply =
      status.ok() ? std::move(piece) : Reply(fetch.frame, FrameKind::kFailed, status.message());
  client->gone |= !client->stream.Send(reply).ok();
  if (!over) client->fetches.push_front(std::move(fetch));
}

}  // namespace remoe

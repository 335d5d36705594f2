// FrameStream: frames over a channel, without waiting. What cannot be sent at once is kept and sent
// by Flush(); how much is kept is for the owner to bound (n_unsent()).
//
// Once the channel failed or a frame was bad, everything fails with that Status. One thread at a
// time.
#ifndef REMOE_REMOTE_FRAME_STREAM_H_
#define REMOE_REMOTE_FRAME_STREAM_H_

#include <memory>
#include <vector>

#include "remote/channel.h"
#include "wire/frame.h"

namespace remoe {

class FrameStream {
 public:
  FrameStream(std::unique_ptr<Channel> channel, const FrameLimits& limits)
      : channel_(std::move(channel)), parser_(limits) {}

  int fd() const { return channel_->fd(); }
  void set_limits(const FrameLimits& limits) { parser_.set_limits(limits); }
  Status Send(const Frame& frame);
  Status Send(const Frame& frame, const float* rows);
  Status Flush();
  size_t n_unsent() const { return unsent_.size() - sent_; }
  size_t n_unfinished() const { return parser_.n_unfinished(); }
  // Appends the frames that have come.
  Status Receive(std::vector<Frame>* frames);
  // See Channel::Discard().
  Status Discard() { return channel_->Discard(); }

 private:
  const std::unique_ptr<Channel> channel_;
  FrameParser parser_;
  std::vector<uint8_t> unsent_;
  size_t sent_ = 0;  // of unsent_
};

}  // namespace remoe

#endif  // REMOE_REMOTE_FRAME_STREAM_H_

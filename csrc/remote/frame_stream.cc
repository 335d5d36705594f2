#include "remote/frame_stream.h"

namespace remoe {

namespace {
constexpr size_t kReadBytes = 256 << 10;
}  // namespace

Status FrameStream::Send(const Frame& frame) {
  AppendFrame(frame, &unsent_);
  return Flush();
}

Status FrameStream::Send(const Frame& frame, const float* rows) {
  AppendFrame(frame, rows, &unsent_);
  return Flush();
}

Status FrameStream::Flush() {
  while (n_unsent() > 0) {
    Result<size_t> sent = channel_->Write(unsent_.data() + sent_, n_unsent());
    if (!sent.ok()) return sent.status();
    if (sent.value() == 0) return Status::Ok();
    sent_ += sent.value();
  }
  unsent_.clear();
  sent_ = 0;
  return Status::Ok();
}

Status FrameStream::Receive(std::vector<Frame>* frames) {
  static thread_local std::vector<uint8_t> bytes(kReadBytes);
  Result<size_t> got = channel_->Read(bytes.data(), bytes.size());
  if (!got.ok()) return got.status();
  parser_.Feed(bytes.data(), got.value());
  while (true) {
    Frame frame;
    bool found = false;
    REMOE_RETURN_IF_ERROR(parser_.Next(&frame, &found));
    if (!found) return Status::Ok();
    frames->push_back(std::move(frame));
  }
}

}  // namespace remoe

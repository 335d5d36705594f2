#include "trace/trace_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/format.h"
#include "base/prob8.h"
#include "base/rounding.h"

namespace remoe {

namespace {
constexpr size_t kFlushBytes = 1 << 20;
}  // namespace

TraceWriter::TraceWriter(std::string path, TraceHeader header, int fd)
    : path_(std::move(path)), part_path_(path_ + ".part"), header_(std::move(header)), fd_(fd) {
  buffer_.reserve(2 * kFlushBytes);
}

TraceWriter::~TraceWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(part_path_.c_str());
}

template <typename T>
void TraceWriter::Put(const T* values, size_t n) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  buffer_.insert(buffer_.end(), bytes, bytes + n * sizeof(T));
}

Result<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::string& path,
                                                         const TraceHeader& header) {
  if (header.n_layers == 0 || header.n_layers > UINT16_MAX || header.n_experts == 0 ||
      header.n_experts > UINT16_MAX || header.top_k == 0 || header.top_k > header.n_experts) {
    return Status(Code::kInvalidArgument,
                  Format("a trace of %u layers of %u experts, top-%u, makes no sense",
                         header.n_layers, header.n_experts, header.top_k));
  }
  if (header.fingerprint.size() > kTraceFingerprintBytes) {
    return Status(Code::kInvalidArgument, "a trace's fingerprint has at most 64 bytes");
  }
  const std::string part_path = path + ".part";
  const int fd = open(part_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return Status::Io("cannot create " + part_path, errno);
  std::unique_ptr<TraceWriter> writer(new TraceWriter(path, header, fd));

  uint8_t head[kTraceHeaderBytes] = {};
  const uint32_t meta_bytes = static_cast<uint32_t>(header.meta.size());
  const uint32_t header_bytes = kTraceHeaderBytes + static_cast<uint32_t>(RoundUp(meta_bytes, 8));
  const uint32_t fields[] = {kTraceVersion,    header_bytes, header.n_layers,
                             header.n_experts, header.top_k, meta_bytes};
  std::memcpy(head, kTraceMagic, 8);
  std::memcpy(head + 8, fields, sizeof fields);
  std::memcpy(head + 32, &kTraceUnfinished, sizeof kTraceUnfinished);
  std::memcpy(head + 40, header.fingerprint.data(), header.fingerprint.size());
  writer->Put(head, sizeof head);
  writer->Put(header.meta.data(), meta_bytes);
  writer->buffer_.resize(header_bytes, 0);
  return writer;
}

Status TraceWriter::Append(const TraceEvent& event) {
  if (!failed_.ok()) return failed_;
  if (finished()) {
    return Status(Code::kInvalidArgument, path_ + " is finished; nothing can be added to it");
  }
  if (event.layer < 0 || event.layer >= static_cast<int>(header_.n_layers) || event.n < 0 ||
      event.n > static_cast<int>(header_.n_experts) || event.n_tokens < 1 || event.step < 0 ||
      event.step > UINT32_MAX || event.n_prob_tokens < 0 || event.n_prob_tokens > event.n_tokens ||
      event.n_prob_tokens > UINT16_MAX || (event.ids == nullptr && event.n_tokens != 1)) {
    return Status(Code::kInvalidArgument,
                  Format("no such event: layer %d, step %lld, %d experts, %d tokens, %d with "
                         "probabilities",
                         event.layer, static_cast<long long>(event.step), event.n, event.n_tokens,
                         event.n_prob_tokens));
  }
  if (event.step != step_) {
    // Only whole steps go to the file.
    if (buffer_.size() >= kFlushBytes) REMOE_RETURN_IF_ERROR(Flush());
    step_ = event.step;
    step_begin_ = buffer_.size();
    step_first_ = n_events_;
  }
  const size_t n_ids = static_cast<size_t>(event.n_tokens) * header_.top_k;
  const bool has_ids =
      event.ids != nullptr && !(event.n_tokens == 1 && n_ids == static_cast<size_t>(event.n) &&
                                std::memcmp(event.ids, event.experts, 2 * n_ids) == 0);
  const uint32_t step = static_cast<uint32_t>(event.step);
  const uint16_t layer = static_cast<uint16_t>(event.layer);
  const uint8_t phase = event.decode ? 1 : 0;
  const uint8_t flags = static_cast<uint8_t>(kTraceRecordMark | (has_ids ? kTraceHasIds : 0));
  const uint32_t n_tokens = static_cast<uint32_t>(event.n_tokens);
  const uint16_t n = static_cast<uint16_t>(event.n);
  const uint16_t n_prob_tokens =
      static_cast<uint16_t>(event.probs != nullptr ? event.n_prob_tokens : 0);
  Put(&step, 1);
  Put(&layer, 1);
  Put(&phase, 1);
  Put(&flags, 1);
  Put(&n_tokens, 1);
  Put(&n, 1);
  Put(&n_prob_tokens, 1);
  Put(event.experts, n);
  if (has_ids) Put(event.ids, n_ids);
  const size_t n_probs = static_cast<size_t>(n_prob_tokens) * header_.n_experts;
  const size_t at = buffer_.size();
  // The header is a multiple of 4 bytes and so is what was flushed, so alignment here is in the
  // file.
  buffer_.resize((at + n_probs + 3) / 4 * 4, 0);
  for (size_t i = 0; i < n_probs; i++) buffer_[at + i] = ToProb8(event.probs[i]);
  n_events_++;
  return Status::Ok();
}

void TraceWriter::DropStep() {
  if (!failed_.ok() || step_ < 0) return;
  buffer_.resize(step_begin_);
  n_events_ = step_first_;
}

Status TraceWriter::Flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      failed_ = Status::Io(Format("cannot write %s at byte %llu", part_path_.c_str(),
                                  static_cast<unsigned long long>(n_bytes_ + done)),
                           errno);
      buffer_.clear();
      n_events_ = n_events_written_;
      return failed_;
    }
    done += static_cast<size_t>(n);
  }
  n_bytes_ += buffer_.size();
  n_events_written_ = n_events_;
  buffer_.clear();
  return Status::Ok();
}

Status TraceWriter::Finish() {
  if (finished()) return Status(Code::kInvalidArgument, path_ + " is finished already");
  if (failed_.ok()) (void)Flush();
  // Not even the header was written.
  if (n_bytes_ == 0) return failed_;
  const Status completed = Complete();
  if (!completed.ok() || failed_.ok()) return completed;
  return Status(failed_.code(), failed_.message() + "; " + path_ + " holds the steps before it");
}

Status TraceWriter::Complete() {
  // What a failed write left behind its last whole step.
  if (ftruncate(fd_, static_cast<off_t>(n_bytes_)) != 0) {
    return Status::Io("cannot finish " + part_path_, errno);
  }
  if (pwrite(fd_, &n_events_, sizeof n_events_, 32) != sizeof n_events_ || fsync(fd_) != 0) {
    return Status::Io("cannot finish " + part_path_, errno);
  }
  if (std::rename(part_path_.c_str(), path_.c_str()) != 0) {
    return Status::Io("cannot rename " + part_path_ + " to " + path_, errno);
  }
  close(fd_);
  fd_ = -1;
  return Status::Ok();
}

}  // namespace remoe

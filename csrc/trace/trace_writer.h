// TraceWriter: records events to a trace file while the engine runs.
//
// Append() copies one event into a buffer, a few hundred nanoseconds; every megabyte or so goes to
// the file, whole steps at a time. The file grows as PATH.part and takes its name in Finish(), so a
// recording that was killed is never mistaken for a whole one; a writer dropped without Finish()
// removes its part file. Where a write fails, for a full disk say, the steps before it are kept:
// Finish() completes the file with them. Owns its file; one thread at a time.
#ifndef REMOE_TRACE_TRACE_WRITER_H_
#define REMOE_TRACE_TRACE_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "trace/trace_file.h"

namespace remoe {

struct TraceEvent {
  int layer = 0;
  int64_t step = 0;
  bool decode = true;
  int n_tokens = 1;
  const uint16_t* experts = nullptr;  // [n] distinct, in the order they are presented to the cache
  int n = 0;
  const uint16_t* ids = nullptr;  // [n_tokens][top_k]; null for one token whose ids are `experts`
  const float* probs = nullptr;   // [n_prob_tokens][n_experts] of the last n_prob_tokens tokens
  int n_prob_tokens = 0;
};

class TraceWriter {
 public:
  static Result<std::unique_ptr<TraceWriter>> Create(const std::string& path,
                                                     const TraceHeader& header);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  const TraceHeader& header() const { return header_; }
  Status Append(const TraceEvent& event);
  // Forgets the events of the last step, which was cut short.
  void DropStep();
  // Flushes, completes the header and gives the file its name. Nothing may be appended after it.
  // RETURNS: the first failed write, also where the steps before it made a readable file.
  Status Finish();

  uint64_t n_events() const { return n_events_; }
  // The first failed write: nothing is recorded after it.
  const Status& failure() const { return failed_; }
  // Whether Finish() has given the file its name.
  bool finished() const { return fd_ < 0; }
  uint64_t n_bytes() const { return n_bytes_ + buffer_.size(); }

 private:
  TraceWriter(std::string path, TraceHeader header, int fd);
  Status Flush();
  Status Complete();
  template <typename T>
  void Put(const T* values, size_t n);

  const std::string path_, part_path_;
  const TraceHeader header_;
  int fd_;
  std::vector<uint8_t> buffer_;
  uint64_t n_bytes_ = 0;  // written
  uint64_t n_events_ = 0;
  uint64_t n_events_written_ = 0;
  size_t step_begin_ = 0;    // of the last step's events, in the buffer
  uint64_t step_first_ = 0;  // its first event
  int64_t step_ = -1;
  Status failed_;
};

}  // namespace remoe

#endif  // REMOE_TRACE_TRACE_WRITER_H_

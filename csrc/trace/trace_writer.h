// TraceWriter: records events to a trace file while the engine runs.
//
// Append() copies one event into a buffer, a few hundred nanoseconds; every megabyte goes to the
// file. The file grows as PATH.part and takes its name in Finish(), so an interrupted recording is
// never mistaken for a whole one. A writer dropped without Finish() removes its part file. After a
// failed write the writer stays failed and says so again. Owns its file; not synchronised.
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
  // Flushes, completes the header and gives the file its name. Nothing may be appended after it.
  Status Finish();

  uint64_t n_events() const { return n_events_; }
  uint64_t n_bytes() const { return n_bytes_ + buffer_.size(); }

 private:
  TraceWriter(std::string path, TraceHeader header, int fd);
  Status Flush();
  template <typename T>
  void Put(const T* values, size_t n);

  const std::string path_, part_path_;
  const TraceHeader header_;
  int fd_;
  std::vector<uint8_t> buffer_;
  uint64_t n_bytes_ = 0;  // written
  uint64_t n_events_ = 0;
  Status failed_;
};

}  // namespace remoe

#endif  // REMOE_TRACE_TRACE_WRITER_H_

// Recorder: writes what steps are routed to into a trace file, while one is wanted.
//
// A write that fails is kept and nothing more is taken: a full disk does not end the conversation,
// and Stop() says so. A step that was cut short is taken out again.
//
// Start, Stop and recording from one thread at a time; ns from any.
#ifndef REMOE_DEVICE_RECORDER_H_
#define REMOE_DEVICE_RECORDER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "cache/policy.h"
#include "trace/trace_writer.h"

namespace remoe {

class Recorder {
 public:
  Status Start(const std::string& path, const TraceHeader& header);
  // Completes the file; without a step there is none. RETURNS: what cut the recording short, if anything
  // did; the steps before it are in the file.
  Status Stop();
  bool on() const { return trace_ != nullptr; }
  uint64_t n_events() const { return trace_ != nullptr ? trace_->n_events() : 0; }
  // What cut the recording short; empty while nothing did.
  std::string failure() const { return trace_ ? trace_->failure().message() : ""; }

  void Record(const Event& event);
  // Forgets the last step, which was cut short.
  void DropStep();
  // Time spent on recording.
  std::atomic<uint64_t> ns{0};

 private:
  std::unique_ptr<TraceWriter> trace_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_RECORDER_H_

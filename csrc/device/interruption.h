// Interruption: a wish that the step under way ends at its next layer.
// FirstFailure: what went wrong first since it was last asked.
//
// A step ends with a bare "failed" or "aborted" for llama.cpp; these two tell the caller why. Both
// are thread-safe; raising an interruption is also safe in a signal handler.
#ifndef REMOE_DEVICE_INTERRUPTION_H_
#define REMOE_DEVICE_INTERRUPTION_H_

#include <atomic>
#include <mutex>

#include "base/status.h"

namespace remoe {

class Interruption {
 public:
  void Raise() { raised_ = true; }
  void Clear() { raised_ = false; }
  bool raised() const { return raised_; }

 private:
  std::atomic<bool> raised_{false};
};

class FirstFailure {
 public:
  void Keep(const Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.ok()) failure_ = status;
  }
  Status Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Status failure = failure_;
    failure_ = Status::Ok();
    return failure;
  }

 private:
  std::mutex mutex_;
  Status failure_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_INTERRUPTION_H_

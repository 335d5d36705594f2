// Interruption: a wish that the step under way ends at its next layer.
// FirstFailure: what went wrong first since it was last asked.
//
// A step ends with a bare "failed" or "aborted" for llama.cpp; these two tell the caller why. Both
// are thread-safe; raising an interruption is also safe in a signal handler.
#ifndef REMOE_DEVICE_INTERRUPTION_H_
#define REMOE_DEVICE_INTERRUPTION_H_

#include <atomic>
#include <functional>
#include <mutex>
#include <utility>

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
    if (listener_) listener_(status);
  }
  // From now on, whoever wants to be told of each failure at once, in the thread that fails.
  void TellAlso(std::function<void(const Status&)> listener) {
    const std::lock_guard<std::mutex> lock(mutex_);
    listener_ = std::move(listener);
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
  std::function<void(const Status&)> listener_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_INTERRUPTION_H_

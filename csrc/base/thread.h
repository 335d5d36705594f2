// StartThread, StartTask: a thread, or a Status where none is to be had.
//
// std::thread and std::async throw then (ulimit -u, a limit on a container's processes, no memory for
// a stack), and what they throw ends the process where nobody expects it: in a destructor, in another
// thread, or beside a thread that is not joined yet. So nothing else in the core starts a thread, and
// whoever does says what becomes of it without one.
//
// From any thread.
#ifndef REMOE_BASE_THREAD_H_
#define REMOE_BASE_THREAD_H_

#include <future>
#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"

namespace remoe {

// kOutOfMemory. `what` follows "a thread that".
Status NoThread(const char* what, const std::system_error& error);

// REQUIRES: *thread runs nothing.
template <typename Function>
Status StartThread(const char* what, Function run, std::thread* thread) {
  try {
    *thread = std::thread(std::move(run));
    return Status::Ok();
  } catch (const std::system_error& error) {
    return NoThread(what, error);
  }
}

// What `run` returns, from a thread of its own. The future's destructor waits for it.
template <typename Function>
Result<std::future<Status>> StartTask(const char* what, Function run) {
  try {
    return std::async(std::launch::async, std::move(run));
  } catch (const std::system_error& error) {
    return NoThread(what, error);
  }
}

}  // namespace remoe

#endif  // REMOE_BASE_THREAD_H_

// Populator: makes the pages of a mapping present a little ahead of their first use.
//
// A read into memory that nobody has touched waits while the kernel finds pages and clears them, as
// long again as a fast disk takes for the bytes. A thread that runs only where a processor would be
// idle does it for the next kNextBytes beyond what is in use, in the order of addresses; no memory
// is taken earlier than that. Where the kernel has no MADV_POPULATE_WRITE (before Linux 5.14), or
// no thread is to be had, nothing is done, and reads wait as they would.
//
// A store that shrinks says so by Limit(): nothing beyond is populated, and what was at that moment
// is given back.
//
// Any function may be called from any thread.
#ifndef REMOE_RUNTIME_POPULATOR_H_
#define REMOE_RUNTIME_POPULATOR_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace remoe {

class Populator {
 public:
  static constexpr uint64_t kNextBytes = 128u << 20;

  // REQUIRES: data is page-aligned, and mapped longer than this lives.
  Populator(uint8_t* data, uint64_t n_bytes, uint64_t next_bytes = kNextBytes);
  ~Populator();
  Populator(const Populator&) = delete;
  Populator& operator=(const Populator&) = delete;

  // All before `end` is in use, or about to be.
  void Used(uint64_t end);
  // Only what lies before `end` is the store's from now on; the rest is as if never used.
  void Limit(uint64_t end);
  // So much of the mapping is present, or about to be: from its start on.
  uint64_t present_bytes() const { return std::max(used_.load(), done_.load()); }

 private:
  void Run();
  uint64_t Target() const;

  uint8_t* const data_;
  const uint64_t next_bytes_;
  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> done_{0};  // populated, or begun; changed under mutex_

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t limit_;  // no more than what is mapped
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_POPULATOR_H_

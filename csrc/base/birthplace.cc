#include "base/birthplace.h"

#include <pthread.h>

#include <atomic>

namespace remoe {

namespace {

std::atomic<uint64_t> g_forks_behind{0};

}  // namespace

uint64_t Birthplace::ForksBehind() {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { g_forks_behind++; });
  (void)watched;
  return g_forks_behind;
}

}  // namespace remoe

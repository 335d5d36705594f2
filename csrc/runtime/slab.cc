#include "runtime/slab.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "base/format.h"
#include "base/memory_page.h"
#include "base/rounding.h"

namespace remoe {

namespace {
constexpr uint64_t kHugePage = 2u << 20;

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
}  // namespace

Result<std::unique_ptr<Slab>> Slab::Make(uint64_t n_bytes, uint64_t held_bytes, bool lock) {
  std::unique_ptr<Slab> slab(new Slab);
  void* data = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return Status(Code::kOutOfMemory, Format("cannot map %.1f MiB for the expert cache: %s",
                                             n_bytes / 1048576.0, std::strerror(errno)));
  }
  slab->data_ = static_cast<uint8_t*>(data);
  slab->n_bytes_ = n_bytes;
  slab->held_bytes_ = held_bytes;
  // A slab of less than a few huge pages would round its resident size up noticeably.
  if (n_bytes >= 8 * kHugePage) {
    slab->huge_pages_ = madvise(data, n_bytes, MADV_HUGEPAGE) == 0;
    if (!slab->huge_pages_) {
      slab->notes_.push_back(
          Format("no huge pages for the expert cache: %s", std::strerror(errno)));
    }
  }
  if (lock) slab->Lock(0, held_bytes);
  return slab;
}

// Locks what is touched between the two, and all before stays so; off for good where it is refused.
void Slab::Lock(uint64_t from, uint64_t to) {
#ifdef MLOCK_ONFAULT
  locked_ = mlock2(data_ + from, to - from, MLOCK_ONFAULT) == 0;
  if (locked_) return;
  const int refused = errno;
  if (from > 0) munlock(data_, from);
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  notes_.push_back(
      Format("expert cache not locked in memory (%s; memlock limit %.0f MiB, wanted %.0f): raise "
             "it with `ulimit -l` if this machine swaps",
             std::strerror(refused), limit.rlim_cur / 1048576.0, to / 1048576.0));
#endif
}

void Slab::Hold(uint64_t n_bytes) {
  const uint64_t page = MemoryPageBytes();
  const uint64_t end = RoundUp(n_bytes, page), before = RoundUp(held_bytes_, page);
  held_bytes_ = n_bytes;
  if (end < before) {
    const int locked = locked_ ? madvise(data_ + end, before - end, MADV_DONTNEED_LOCKED) : -1;
    if (locked == 0) return;
    // Before Linux 5.18 what is locked cannot be given back.
    if (locked_) munlock(data_ + end, before - end);
    madvise(data_ + end, before - end, MADV_DONTNEED);
  } else if (end > before && locked_) {
    Lock(before, end);
  }
}

Result<std::unique_ptr<Slab>> Slab::Addresses(uint64_t n_bytes) {
  std::unique_ptr<Slab> slab(new Slab);
  void* data =
      mmap(nullptr, n_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return Status(Code::kOutOfMemory, Format("cannot map %.1f MiB of addresses: %s",
                                             n_bytes / 1048576.0, std::strerror(errno)));
  }
  slab->data_ = static_cast<uint8_t*>(data);
  slab->n_bytes_ = slab->held_bytes_ = n_bytes;
  return slab;
}

Slab::~Slab() {
  if (data_ != nullptr) munmap(data_, n_bytes_);
}

}  // namespace remoe

#include "runtime/slab.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "base/format.h"

namespace remoe {

namespace {
constexpr uint64_t kHugePage = 2u << 20;
}  // namespace

Result<std::unique_ptr<Slab>> Slab::Make(uint64_t n_bytes, bool lock) {
  std::unique_ptr<Slab> slab(new Slab);
  void* data = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return Status(Code::kOutOfMemory, Format("cannot map %.1f MiB for the expert cache: %s",
                                             n_bytes / 1048576.0, std::strerror(errno)));
  }
  slab->data_ = static_cast<uint8_t*>(data);
  slab->n_bytes_ = n_bytes;
  // A slab of less than a few huge pages would round its resident size up noticeably.
  if (n_bytes >= 8 * kHugePage) {
    slab->huge_pages_ = madvise(data, n_bytes, MADV_HUGEPAGE) == 0;
    if (!slab->huge_pages_) {
      slab->notes_.push_back(
          Format("no huge pages for the expert cache: %s", std::strerror(errno)));
    }
  }
#ifdef MLOCK_ONFAULT
  if (lock) {
    slab->locked_ = mlock2(data, n_bytes, MLOCK_ONFAULT) == 0;
    if (!slab->locked_) {
      rlimit limit{};
      getrlimit(RLIMIT_MEMLOCK, &limit);
      slab->notes_.push_back(Format(
          "expert cache not locked in memory (%s; memlock limit %.0f MiB, wanted %.0f): raise "
          "it with `ulimit -l` if this machine swaps",
          std::strerror(errno), limit.rlim_cur / 1048576.0, n_bytes / 1048576.0));
    }
  }
#endif
  return slab;
}

Slab::~Slab() {
  if (data_ != nullptr) munmap(data_, n_bytes_);
}

}  // namespace remoe

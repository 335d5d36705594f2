// Whether pages can be had before their use here, for tests that look for them.
//
// Linux before 5.14 refuses MADV_POPULATE_WRITE. Emulators of user programs may take it and do nothing,
// as they may any advice. So a page is asked for, and looked for. A test that cannot have any says so
// and ends. Owns nothing; thread-safe.
#ifndef REMOE_TESTING_POPULATE_H_
#define REMOE_TESTING_POPULATE_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>

namespace remoe {

inline bool CanPopulate() {
  constexpr int kPopulateWrite = 23;
  const auto n_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* page = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  unsigned char present = 0;
  const bool can = page != MAP_FAILED && madvise(page, n_bytes, kPopulateWrite) == 0 &&
                   mincore(page, n_bytes, &present) == 0 && (present & 1) != 0;
  if (page != MAP_FAILED) munmap(page, n_bytes);
  if (!can) std::printf("left out: no MADV_POPULATE_WRITE\n");
  return can;
}

}  // namespace remoe

#endif  // REMOE_TESTING_POPULATE_H_

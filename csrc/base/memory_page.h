// The size of the pages in which this machine's memory is mapped: 4 KiB on x86-64 and on Jetson's
// kernels, 16 or 64 KiB on other kernels for aarch64.
//
// mmap, madvise, mprotect and posix_fadvise take multiples of it and refuse or shorten what is not.
// Storage's unit, which O_DIRECT and slots go by, is another: kPage of storage/reader.h.
//
// Nobody owns anything; any thread may ask.
#ifndef REMOE_BASE_MEMORY_PAGE_H_
#define REMOE_BASE_MEMORY_PAGE_H_

#include <unistd.h>

#include <cstdint>

namespace remoe {

inline uint64_t MemoryPageBytes() {
  static const auto bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace remoe

#endif  // REMOE_BASE_MEMORY_PAGE_H_

#include "runtime/populator.h"

#include <pthread.h>
#include <sys/mman.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/memory_page.h"
#include "testing/check.h"
#include "testing/populate.h"

namespace remoe {
namespace {

const uint64_t kPageBytes = MemoryPageBytes(), kBytes = 64 * kPageBytes;

class Mapping {
 public:
  Mapping()
      : data_(static_cast<uint8_t*>(
            ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~Mapping() { ::munmap(data_, kBytes); }
  uint8_t* data() const { return data_; }

  uint64_t PresentPages() const {
    std::vector<unsigned char> present(kBytes / kPageBytes);
    if (::mincore(data_, kBytes, present.data()) != 0) return 0;
    uint64_t n = 0;
    for (const unsigned char each : present) n += each & 1;
    return n;
  }

 private:
  uint8_t* const data_;
};

TEST(PagesBecomePresentBeforeTheirUse) {
  const Mapping mapping;
  if (!CanPopulate()) return;
  Populator populator(mapping.data(), kBytes, 8 * kPageBytes);
  populator.Used(4 * kPageBytes);
  // At the least those between what is in use and what lies ahead; a scheduler may let it wait.
  for (int i = 0; i < 30000 && mapping.PresentPages() < 8; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(mapping.PresentPages() >= 8);
  CHECK(mapping.PresentPages() <= 12);
}

TEST(WithoutAThreadNothingIsDone) {
  pthread_attr_t found, hopeless;
  CHECK_EQ(::pthread_getattr_default_np(&found), 0);
  CHECK_EQ(::pthread_attr_init(&hopeless), 0);
  CHECK_EQ(::pthread_attr_setstacksize(&hopeless, size_t{1} << 46), 0);
  CHECK_EQ(::pthread_setattr_default_np(&hopeless), 0);
  {
    const Mapping mapping;
    Populator populator(mapping.data(), kBytes);
    populator.Used(kBytes / 2);
    CHECK_EQ(mapping.PresentPages(), uint64_t{0});
  }
  CHECK_EQ(::pthread_setattr_default_np(&found), 0);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Birthplace: whether this process is the one in which an object was made, or a forked child of it.
//
// A child has its parent's memory, and none of its threads: whoever waits for one waits for ever. Worse,
// a ring of io_uring is shared, so that what a child asks for is answered in the parent. So what has
// threads or a ring must not be used in a child, nor destroyed there.
//
// The C library tells of each fork(); asking costs no system call. A plain value. Any thread.
#ifndef REMOE_BASE_BIRTHPLACE_H_
#define REMOE_BASE_BIRTHPLACE_H_

#include <cstdint>

namespace remoe {

class Birthplace {
 public:
  Birthplace() : n_forks_(ForksBehind()) {}
  bool is_here() const { return ForksBehind() == n_forks_; }

 private:
  // How many forks lie between this process and the first that asked.
  static uint64_t ForksBehind();

  uint64_t n_forks_;
};

}  // namespace remoe

#endif  // REMOE_BASE_BIRTHPLACE_H_

#include "storage/uring_ring.h"

#ifdef REMOE_HAVE_URING

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

// The C library may be older than the kernel's headers. The numbers are the same on x86-64 and
// aarch64.
#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

// In headers since Linux 5.8.
#ifndef IORING_SQ_CQ_OVERFLOW
#define IORING_SQ_CQ_OVERFLOW (1U << 1)
#endif

namespace remoe {
namespace {

// One mapping holds both rings (Linux 5.4), and no completion is dropped (5.5).
constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP;

int Setup(unsigned n_entries, io_uring_params* params) {
  return static_cast<int>(::syscall(__NR_io_uring_setup, n_entries, params));
}

// How many requests the kernel took, or -errno.
int Enter(int fd, unsigned n_submit, unsigned n_wait, unsigned flags) {
  const long answer =
      ::syscall(__NR_io_uring_enter, fd, n_submit, n_wait, flags, nullptr, size_t{0});
  return answer < 0 ? -errno : static_cast<int>(answer);
}

unsigned Acquire(const unsigned* at) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

void Release(unsigned* at, unsigned value) {
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

const char* Remedy(int error_number) {
  switch (error_number) {
    case EPERM:
    case EACCES:
      return " (a container's system call filter, or kernel.io_uring_disabled)";
    case ENOMEM:
      return " (a limit on memory, locked or all: ulimit -l, ulimit -v)";
    case EMFILE:
      return " (the limit on open files: ulimit -n)";
    case ENOSYS:
      return " (a kernel without it, or a container's system call filter)";
    default:
      return "";
  }
}

Status Refusal(int error_number) {
  return Status(
      Code::kNotSupported,
      "io_uring refused: " + std::generic_category().message(error_number) + Remedy(error_number));
}

}  // namespace

Result<std::unique_ptr<UringRing>> UringRing::Open(int n_entries) {
  std::unique_ptr<UringRing> ring(new UringRing());
  io_uring_params params = {};
  ring->fd_ = Setup(static_cast<unsigned>(n_entries), &params);
  if (ring->fd_ < 0) return Refusal(errno);
  if ((params.features & kNeeded) != kNeeded) {
    return Status(Code::kNotSupported, "io_uring refused: the kernel is older than Linux 5.5");
  }
  int refusal = ring->Map(params);
  if (refusal == 0) refusal = ring->Prove();
  if (refusal != 0) return Refusal(refusal);
  return ring;
}

UringRing::~UringRing() {
  if (entries_.data != nullptr) ::munmap(entries_.data, entries_.n_bytes);
  if (rings_.data != nullptr) ::munmap(rings_.data, rings_.n_bytes);
  if (fd_ >= 0) ::close(fd_);
}

int UringRing::Map(const io_uring_params& params) {
  const auto map = [this](size_t n_bytes, uint64_t what, Mapping* mapping) {
    void* data = ::mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_,
                        static_cast<off_t>(what));
    if (data == MAP_FAILED) return errno;
    *mapping = {data, n_bytes};
    return 0;
  };
  const size_t submission_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const size_t completion_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  const size_t ring_bytes =
      submission_bytes > completion_bytes ? submission_bytes : completion_bytes;
  int refusal = map(ring_bytes, IORING_OFF_SQ_RING, &rings_);
  if (refusal != 0) return refusal;
  refusal = map(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES, &entries_);
  if (refusal != 0) return refusal;

  auto* base = static_cast<uint8_t*>(rings_.data);
  const auto word = [base](unsigned offset) { return reinterpret_cast<unsigned*>(base + offset); };
  submission_head_ = word(params.sq_off.head);
  submission_tail_ = word(params.sq_off.tail);
  submission_flags_ = word(params.sq_off.flags);
  submission_index_ = word(params.sq_off.array);
  submission_mask_ = *word(params.sq_off.ring_mask);
  submissions_ = static_cast<io_uring_sqe*>(entries_.data);
  completion_head_ = word(params.cq_off.head);
  completion_tail_ = word(params.cq_off.tail);
  completion_mask_ = *word(params.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(base + params.cq_off.cqes);
  return 0;
}

// Sends a request that does nothing through the ring.
int UringRing::Prove() {
  NextEntry()->opcode = IORING_OP_NOP;
  Release(submission_tail_, *submission_tail_ + 1);
  int answer;
  do {
    answer = Enter(fd_, n_prepared(), 1, IORING_ENTER_GETEVENTS);
  } while (answer == -EINTR);
  if (answer < 0) return -answer;
  Completion completion;
  if (!PopCompletion(&completion)) return EIO;
  return completion.result < 0 ? static_cast<int>(-completion.result) : 0;
}

int UringRing::RegisterFiles(const std::vector<int>& descriptors) {
  const long answer = ::syscall(__NR_io_uring_register, fd_, IORING_REGISTER_FILES,
                                descriptors.data(), static_cast<unsigned>(descriptors.size()));
  registered_ = answer >= 0;
  return registered_ ? 0 : errno;
}

// The entry at the tail, cleared, and its place in the ring. The kernel sees it once the tail
// moves.
io_uring_sqe* UringRing::NextEntry() {
  const unsigned at = *submission_tail_ & submission_mask_;
  submission_index_[at] = at;
  io_uring_sqe* entry = submissions_ + at;
  std::memset(entry, 0, sizeof(*entry));
  return entry;
}

void UringRing::PrepareRead(int fd, const iovec* iovecs, int n_iovecs, uint64_t offset,
                            void* data) {
  io_uring_sqe* entry = NextEntry();
  entry->opcode = IORING_OP_READV;
  entry->flags = registered_ ? IOSQE_FIXED_FILE : 0;
  entry->fd = fd;
  entry->addr = reinterpret_cast<uintptr_t>(iovecs);
  entry->len = static_cast<unsigned>(n_iovecs);
  entry->off = offset;
  entry->user_data = reinterpret_cast<uintptr_t>(data);
  Release(submission_tail_, *submission_tail_ + 1);
}

unsigned UringRing::n_prepared() const {
  return *submission_tail_ - Acquire(submission_head_);
}

int UringRing::Submit() {
  return Enter(fd_, n_prepared(), 0, 0);
}

std::vector<void*> UringRing::TakeBack() {
  std::vector<void*> withdrawn;
  // Without a kernel thread that polls, the kernel looks at the tail only when we enter.
  const unsigned head = Acquire(submission_head_);
  for (unsigned at = head; at != *submission_tail_; ++at) {
    const io_uring_sqe& entry = submissions_[at & submission_mask_];
    withdrawn.push_back(reinterpret_cast<void*>(static_cast<uintptr_t>(entry.user_data)));
  }
  Release(submission_tail_, head);
  return withdrawn;
}

bool UringRing::PopCompletion(Completion* completion) {
  const unsigned head = *completion_head_;
  if (head == Acquire(completion_tail_)) {
    // The ring has twice the entries, so it cannot overflow; a kernel that holds completions back
    // all the same hands them over when it is entered.
    if ((Acquire(submission_flags_) & IORING_SQ_CQ_OVERFLOW) == 0) return false;
    (void)Enter(fd_, 0, 0, IORING_ENTER_GETEVENTS);
    if (head == Acquire(completion_tail_)) return false;
  }
  const io_uring_cqe& entry = completions_[head & completion_mask_];
  completion->data = reinterpret_cast<void*>(static_cast<uintptr_t>(entry.user_data));
  completion->result = entry.res;
  Release(completion_head_, head + 1);
  return true;
}

}  // namespace remoe

#endif  // REMOE_HAVE_URING

// What an engine counts of its peers: one table, as store_counts.h has one for storage.
//
//     REMOE_COUNTER(field, the name that Python has, meaning)
//
// Times in microseconds, sizes in bytes; asks are experts of one step, whatever their rows.
//
// RemoteCounts is a plain value. RemoteTallies may be added to and read from any thread.
#ifndef REMOE_REMOTE_REMOTE_COUNTS_H_
#define REMOE_REMOTE_REMOTE_COUNTS_H_

#include <atomic>
#include <cstdint>

namespace remoe {

#define REMOE_REMOTE_COUNTERS(REMOE_COUNTER)                                                   \
  REMOE_COUNTER(asked, "remote_asked", "experts of steps that a peer was asked for")           \
  REMOE_COUNTER(experts, "remote_experts", "those whose rows came in time")                    \
  REMOE_COUNTER(rows, "remote_rows", "rows of those experts")                                  \
  REMOE_COUNTER(late, "remote_late", "answers for a step that was over")                       \
  REMOE_COUNTER(hedges, "remote_hedges", "experts given to storage because a peer was slow")   \
  REMOE_COUNTER(busy, "remote_busy", "asks that a peer turned away")                           \
  REMOE_COUNTER(lost, "remote_lost", "asks that went with a connection, or failed there")      \
  REMOE_COUNTER(sent_bytes, "remote_sent_bytes", "rows sent to peers")                         \
  REMOE_COUNTER(received_bytes, "remote_received_bytes", "rows that peers answered")           \
  REMOE_COUNTER(compute_us, "remote_compute_us", "computing that peers report")                \
  REMOE_COUNTER(audited, "remote_audited", "answers computed again here and compared by bits") \
  REMOE_COUNTER(mismatches, "remote_mismatches", "canaries and audits that differed")

struct RemoteCounts {
#define REMOE_COUNTER(field, name, meaning) uint64_t field = 0;
  REMOE_REMOTE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
};

struct RemoteTallies {
#define REMOE_COUNTER(field, name, meaning) std::atomic<uint64_t> field{0};
  REMOE_REMOTE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER

  RemoteCounts Read() const {
    RemoteCounts counts;
#define REMOE_COUNTER(field, name, meaning) counts.field = field;
    REMOE_REMOTE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
    return counts;
  }
};

// Calls each(name, meaning, value) in the order of the table.
template <typename Each>
void ForEachCounter(const RemoteCounts& counts, const Each& each) {
#define REMOE_COUNTER(field, name, meaning) each(name, meaning, counts.field);
  REMOE_REMOTE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
}

}  // namespace remoe

#endif  // REMOE_REMOTE_REMOTE_COUNTS_H_

// What an engine counts of its peers: one table, as store_counts.h has one for storage.
//
//     COUNTER(field, the name that Python has, meaning)
//
// Times in microseconds, sizes in bytes; asks are experts of one step, whatever their rows.
//
// RemoteCounts is a plain value. RemoteTallies may be added to and read from any thread.
#ifndef REMOE_REMOTE_REMOTE_COUNTS_H_
#define REMOE_REMOTE_REMOTE_COUNTS_H_

#include "base/counters.h"

namespace remoe {

#define REMOE_REMOTE_COUNTERS(COUNTER)                                                     \
  COUNTER(asked, "remote_asked", "experts of steps that a peer was asked for")             \
  COUNTER(experts, "remote_experts", "those whose rows came in time")                      \
  COUNTER(rows, "remote_rows", "rows of those experts")                                    \
  COUNTER(late, "remote_late", "answers for a step that was over")                         \
  COUNTER(hedges, "remote_hedges", "experts given to storage because a peer was slow")     \
  COUNTER(busy, "remote_busy", "asks that a peer turned away")                             \
  COUNTER(admitted, "remote_admitted", "experts that a peer has and that became hot here") \
  COUNTER(fetches, "remote_fetches", "matrices that a peer was asked to send")             \
  COUNTER(fetched_bytes, "remote_fetched_bytes", "weights that peers sent")                \
  COUNTER(lost, "remote_lost", "asks that went with a connection, or failed there")        \
  COUNTER(sent_bytes, "remote_sent_bytes", "rows sent to peers")                           \
  COUNTER(received_bytes, "remote_received_bytes", "rows that peers answered")             \
  COUNTER(compute_us, "remote_compute_us", "computing that peers report")                  \
  COUNTER(audited, "remote_audited", "answers computed again here and compared by bits")   \
  COUNTER(mismatches, "remote_mismatches", "canaries and audits that differed")

REMOE_COUNTERS(RemoteCounts, RemoteTallies, REMOE_REMOTE_COUNTERS)

}  // namespace remoe

#endif  // REMOE_REMOTE_REMOTE_COUNTS_H_

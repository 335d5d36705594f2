// What an ExpertStore counts: one table, from which the plain values, the atomics and every list of
// names are made (also Python's: _core.counter_names()).
//
//     COUNTER(field, the name that Python and the records in docs/results have, meaning)
//
// StoreCounts is a plain value. StoreTallies may be added to and read from any thread.
#ifndef REMOE_RUNTIME_STORE_COUNTS_H_
#define REMOE_RUNTIME_STORE_COUNTS_H_

#include "base/counters.h"

namespace remoe {

// bytes_read is for experts that an event asked for: misses times expert bytes (fewer where they come in a
// coarser form), counted as reads complete (or, of what was prefetched, as the event comes).
#define REMOE_STORE_COUNTERS(COUNTER)                                                            \
  COUNTER(hits, "hits", "experts that were resident when their event came")                      \
  COUNTER(misses, "misses", "experts that were not, prefetched or not")                          \
  COUNTER(bytes_read, "bytes_read", "read for misses: misses times expert bytes")                \
  COUNTER(coarse_bytes, "coarse_bytes", "those of bytes_read that came in a coarser form")       \
  COUNTER(device_bytes, "device_bytes", "moved by storage, rounding to pages included")          \
  COUNTER(stall_ns, "stall_ns", "compute waiting for storage")                                   \
  COUNTER(read_ns, "read_ns", "with a read under way that an event waits for")                   \
  COUNTER(events, "events", "layers of steps, and waves of them")                                \
  COUNTER(evictions, "evictions", "residents that lost their slot")                              \
  COUNTER(start_experts, "warm_experts", "made resident before any event asked for them")        \
  COUNTER(start_bytes, "warm_bytes", "theirs, not in bytes_read")                                \
  COUNTER(start_dropped_bytes, "warm_dropped_bytes", "read for experts that came too late")      \
  COUNTER(partial_misses, "begun_misses", "misses that were begun before down had come")         \
  COUNTER(prefetched_misses, "prefetched_misses", "misses whose reading began before the event") \
  COUNTER(prefetch_useful_bytes, "prefetch_useful_bytes", "those of bytes_read that did")        \
  COUNTER(prefetch_wasted_bytes, "prefetch_wasted_bytes", "read for nobody, not in bytes_read")  \
  COUNTER(prefetch_given_up, "prefetch_given_up", "experts planned or begun, and dropped")

REMOE_COUNTERS(StoreCounts, StoreTallies, REMOE_STORE_COUNTERS)

}  // namespace remoe

#endif  // REMOE_RUNTIME_STORE_COUNTS_H_

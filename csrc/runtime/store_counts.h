// What an ExpertStore counts: one table, from which the plain values, the atomics and every list of
// names are made (also Python's: _core.counter_names()).
//
//     REMOE_COUNTER(field, the name that Python and the records in docs/results have, meaning)
//
// StoreCounts is a plain value. StoreTallies may be added to and read from any thread.
#ifndef REMOE_RUNTIME_STORE_COUNTS_H_
#define REMOE_RUNTIME_STORE_COUNTS_H_

#include <atomic>
#include <cstdint>

namespace remoe {

// bytes_read is for experts that an event asked for: misses times expert bytes, counted as reads
// complete (or, of what was prefetched, as the event comes).
#define REMOE_STORE_COUNTERS(REMOE_COUNTER)                                                        \
  REMOE_COUNTER(hits, "hits", "experts that were resident when their event came")                  \
  REMOE_COUNTER(misses, "misses", "experts that were not, prefetched or not")                      \
  REMOE_COUNTER(bytes_read, "bytes_read", "read for misses: misses times expert bytes")            \
  REMOE_COUNTER(device_bytes, "device_bytes", "moved by storage, rounding to pages included")      \
  REMOE_COUNTER(stall_ns, "stall_ns", "compute waiting for storage")                               \
  REMOE_COUNTER(read_ns, "read_ns", "with a read under way that an event waits for")               \
  REMOE_COUNTER(events, "events", "layers of steps, and waves of them")                            \
  REMOE_COUNTER(evictions, "evictions", "residents that lost their slot")                          \
  REMOE_COUNTER(start_experts, "warm_experts", "made resident before any event asked for them")    \
  REMOE_COUNTER(start_bytes, "warm_bytes", "theirs, not in bytes_read")                            \
  REMOE_COUNTER(start_dropped_bytes, "warm_dropped_bytes", "read for experts that came too late")  \
  REMOE_COUNTER(partial_misses, "begun_misses", "misses that were begun before down had come")     \
  REMOE_COUNTER(prefetched_misses, "ahead_misses", "misses whose reading began before the event")  \
  REMOE_COUNTER(prefetch_useful_bytes, "ahead_useful_bytes", "those of bytes_read that did")       \
  REMOE_COUNTER(prefetch_wasted_bytes, "ahead_wasted_bytes", "read for nobody, not in bytes_read") \
  REMOE_COUNTER(prefetch_given_up, "ahead_given_up", "experts planned or begun, and dropped")

struct StoreCounts {
#define REMOE_COUNTER(field, name, meaning) uint64_t field = 0;
  REMOE_STORE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
};

struct StoreTallies {
#define REMOE_COUNTER(field, name, meaning) std::atomic<uint64_t> field{0};
  REMOE_STORE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER

  StoreCounts Read() const {
    StoreCounts counts;
#define REMOE_COUNTER(field, name, meaning) counts.field = field;
    REMOE_STORE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
    return counts;
  }
};

// Calls each(name, meaning, value) in the order of the table.
template <typename Each>
void ForEachCounter(const StoreCounts& counts, const Each& each) {
#define REMOE_COUNTER(field, name, meaning) each(name, meaning, counts.field);
  REMOE_STORE_COUNTERS(REMOE_COUNTER)
#undef REMOE_COUNTER
}

}  // namespace remoe

#endif  // REMOE_RUNTIME_STORE_COUNTS_H_

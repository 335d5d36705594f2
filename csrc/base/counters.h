// Counters from one table: plain values, atomics that add up to them, and every list of their names.
//
//     #define MY_COUNTERS(COUNTER) COUNTER(field, "the name that Python has", "meaning") ...
//     REMOE_COUNTERS(MyCounts, MyTallies, MY_COUNTERS)
//
// MyCounts is a plain value. MyTallies may be added to and read from any thread; Read() takes one
// counter after the other, and Add() adds counts to them. ForEachCounter(counts, each) calls each(name, meaning, value) in the
// order of the table.
#ifndef REMOE_BASE_COUNTERS_H_
#define REMOE_BASE_COUNTERS_H_

#include <atomic>
#include <cstdint>

#define REMOE_COUNTER_VALUE(field, name, meaning) uint64_t field = 0;
#define REMOE_COUNTER_TALLY(field, name, meaning) std::atomic<uint64_t> field{0};
#define REMOE_COUNTER_ADD(field, name, meaning) field += counts.field;
#define REMOE_COUNTER_READ(field, name, meaning) counts.field = field;
#define REMOE_COUNTER_EACH(field, name, meaning) each(name, meaning, counts.field);

#define REMOE_COUNTERS(Counts, Tallies, TABLE)                  \
  struct Counts {                                               \
    TABLE(REMOE_COUNTER_VALUE)                                  \
  };                                                            \
  struct Tallies {                                              \
    TABLE(REMOE_COUNTER_TALLY)                                  \
    Counts Read() const {                                       \
      Counts counts;                                            \
      TABLE(REMOE_COUNTER_READ)                                 \
      return counts;                                            \
    }                                                           \
    void Add(const Counts& counts) { TABLE(REMOE_COUNTER_ADD) } \
  };                                                            \
  template <typename Each>                                      \
  void ForEachCounter(const Counts& counts, const Each& each) { \
    TABLE(REMOE_COUNTER_EACH)                                   \
  }

#endif  // REMOE_BASE_COUNTERS_H_

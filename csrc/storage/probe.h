// Probe: how fast random reads of a file are, by block size and by how many are in flight, and the
// depth that an engine should use. Measured through the same Reader that will read the experts,
// within a time limit, and only inside the ranges given: at start an engine may read dense bytes,
// no experts.
//
// Where the storage is slow, points that would overrun the time limit are left out, but never the
// first of the block size that the pick is for. PickDepth is pure. Thread-safe: a Probe shares
// nothing.
#ifndef REMOE_STORAGE_PROBE_H_
#define REMOE_STORAGE_PROBE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "storage/faults.h"

namespace remoe {

struct ProbeRange {
  uint64_t offset = 0;
  uint64_t n_bytes = 0;
};

struct ProbeOptions {
  std::vector<ProbeRange> ranges;  // where to read; empty: anywhere in the file
  std::vector<uint64_t> block_bytes = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20};
  std::vector<int> depths = {1, 2, 4, 8, 16, 32};
  double seconds = 2;               // for all points together
  uint64_t wanted_bytes = 1 << 20;  // the block size that the pick is for
  std::string backend = "auto";     // as in ReaderOptions
  bool direct = true;
  FaultPlan faults;  // tests only
};

struct ProbePoint {
  uint64_t block_bytes = 0;
  int depth = 0;
  uint64_t n_reads = 0;
  double seconds = 0;

  double bytes_per_s() const { return static_cast<double>(n_reads * block_bytes) / seconds; }
};

struct ProbeResult {
  std::string backend;
  bool direct = false;
  std::vector<std::string> notes;
  std::vector<ProbePoint> points;  // by block size, then depth
  ProbePoint pick;                 // one of points
};

// kInvalidArgument if the file is shorter than 64 KiB or no block fits into the ranges; kIo if a
// read fails.
Result<ProbeResult> Probe(const std::string& path, const ProbeOptions& options);

// What an engine measures at start: reads of one size inside `ranges`, 150 ms.
ProbeOptions QuickProbe(std::vector<ProbeRange> ranges, uint64_t wanted_bytes);

// The point of the smallest depth whose throughput is within 5 % of the best, among those of the
// block size nearest to `wanted_bytes`, but of no depth below 4 where deeper ones were measured.
// REQUIRES: points is not empty, and by depth within a block size.
ProbePoint PickDepth(const std::vector<ProbePoint>& points, uint64_t wanted_bytes);

}  // namespace remoe

#endif  // REMOE_STORAGE_PROBE_H_

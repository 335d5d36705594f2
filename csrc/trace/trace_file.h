// The trace file: which experts each step of each layer was routed to, and what the router said.
//
// Little-endian. A header of 128 bytes, a JSON object, then one record per event (a step of a
// layer) in the order the engine met them. docs/policies.md explains the fields; routing/trace.py
// reads them as arrays.
//
//   header   0  char[8]   "REMOETRC"
//            8  u32       version, 1
//           12  u32       header_bytes: where the first record begins
//           16  u32       n_layers
//           20  u32       n_experts of a layer
//           24  u32       top_k
//           28  u32       meta_bytes of JSON, which begins at 128
//           32  u64       n_events; all ones while the recording runs
//           40  char[64]  fingerprint of the model, NUL-padded
//          104            zeros
//
//   record   0  u32       step
//            4  u16       layer
//            6  u8        phase: 0 prefill, 1 decode
//            7  u8        0xA0 | has_ids
//            8  u32       n_tokens
//           12  u16       n: distinct experts
//           14  u16       n_prob_tokens
//           16  u16[n]                        the distinct experts, as presented
//               u16[n_tokens][top_k]          ids, if has_ids; else the experts are one token's ids
//               u8[n_prob_tokens][n_experts]  probabilities (base/prob8.h) of the last tokens
//               zeros up to a multiple of 4
//
// ParseTrace() checks every field against the file before it is used. It does no I/O, owns what it
// returns, and may run in any thread.
#ifndef REMOE_TRACE_TRACE_FILE_H_
#define REMOE_TRACE_TRACE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

constexpr char kTraceMagic[9] = "REMOETRC";
constexpr uint32_t kTraceVersion = 1;
constexpr uint32_t kTraceHeaderBytes = 128;
constexpr uint32_t kTraceRecordBytes = 16;  // before its arrays
constexpr uint64_t kTraceUnfinished = UINT64_MAX;
constexpr uint8_t kTraceRecordMark = 0xA0;
constexpr uint8_t kTraceHasIds = 0x01;
constexpr size_t kTraceFingerprintBytes = 64;

struct TraceHeader {
  uint32_t n_layers = 0;   // MoE layers
  uint32_t n_experts = 0;  // of a layer
  uint32_t top_k = 0;
  std::string fingerprint;  // of the model, at most 64 bytes
  std::string meta = "{}";  // a JSON object
};

// A trace as columns, one row per event. ids_at and probs_at are byte offsets into the file, -1
// where the record has none; probs_at is that of the last token.
struct TraceIndex {
  TraceHeader header;
  std::vector<int64_t> step;
  std::vector<uint16_t> layer;
  std::vector<uint8_t> phase;
  std::vector<uint32_t> n_tokens;
  std::vector<int64_t> offsets;  // [n_events + 1] into experts
  std::vector<uint16_t> experts;
  std::vector<int64_t> ids_at;
  std::vector<int64_t> probs_at;
  std::vector<uint16_t> n_prob_tokens;
};

// `path` is for messages. Damage is kCorrupt and names the event and the offset.
Result<TraceIndex> ParseTrace(const uint8_t* data, size_t size, const std::string& path);

}  // namespace remoe

#endif  // REMOE_TRACE_TRACE_FILE_H_

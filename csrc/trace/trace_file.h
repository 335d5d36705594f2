// The trace file: which experts each step of each layer was routed to, and the router's
// probabilities.
//
// Little-endian. A header of 128 bytes, a JSON object, then one record per event (a step of a
// layer) in the order the engine met them. docs/policies.md draws the layout; routing/trace.py reads it as
// arrays.
//
//   0  char[8] "REMOETRC"      24 u32 top_k             40 char[64] fingerprint of the model,
//   NUL-padded 8  u32 version (1)         28 u32 meta_bytes       104 zeros
//  12  u32 header_bytes        32 u64 n_events
//  16  u32 n_layers, 20 u32 n_experts
//
// Record: u32 step, u16 layer, u8 phase, u8 0xA0|has_ids, u32 n_tokens, u16 n, u16 n_prob_tokens;
// then u16 experts[n] distinct, as presented; u16 ids[n_tokens][top_k] if has_ids (otherwise there
// is one token and the experts are its ids); u8 probs[n_prob_tokens][n_experts] (base/prob8.h), of
// the last n_prob_tokens tokens; zeros up to a multiple of 4.
//
// ParseTrace() checks every field against the file before it is used. No I/O, thread-safe.
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

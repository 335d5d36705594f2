// Frame: what goes over a connection between an engine and a worker, and its parser. No I/O.
//
//     header, 56 bytes, little-endian      | payload
//     magic u32, version u16, kind u16,    | kAsk, kAnswer: rows x columns floats
//     request u64, layer u32, expert u32,  | others: text or a value of handshake.h
//     rows u32, columns u32, recipe u32,   |
//     time_us u32, payload u64, sum u64    |
//
// A size is checked against the limits before a byte is allocated for it, and the sum covers header
// and payload. A bad frame ends a connection: nothing after it can be trusted. One thread at a time.
#ifndef REMOE_WIRE_FRAME_H_
#define REMOE_WIRE_FRAME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

constexpr uint16_t kProtocolVersion = 2;
constexpr size_t kFrameHeaderBytes = 56;

enum class FrameKind : uint16_t {
  kHello = 1,  // an engine begins: its Identity
  kWelcome,    // the worker's answer: a Welcome
  kRefused,    // or why not, as text; the connection ends
  kRecipe,     // how a layer's FFN is computed, under a number of the engine's
  kAsk,        // rows of an expert; time_us: after that nobody waits for it any more
  kAnswer,     // what they give; time_us: what computing took
  kBusy,     // not now; nothing was computed. To a greeting: with why, as text; the connection ends
  kFailed,   // not at all, as text
  kFetch,    // a matrix of an expert, whose index is in `recipe`; rows: the bytes it has
  kWeights,  // a piece of it; columns: where the piece begins, in bytes
  kWish,     // what an engine would have the worker hold: a list of WishedExpert
  kHolds,    // what the worker holds from now on, and no longer: a HeldChange
};
constexpr uint16_t kLastFrameKind = static_cast<uint16_t>(FrameKind::kHolds);

struct Frame {
  FrameKind kind = FrameKind::kHello;
  uint64_t request = 0;
  uint32_t layer = 0;
  uint32_t expert = 0;
  uint32_t rows = 0;
  uint32_t columns = 0;
  uint32_t recipe = 0;
  uint32_t time_us = 0;
  std::vector<uint8_t> payload;

  std::string text() const { return std::string(payload.begin(), payload.end()); }
  const float* values() const { return reinterpret_cast<const float*>(payload.data()); }
};

// What the other end has said, as a line that a person may be shown: no longer than one, and without what
// would move a terminal's cursor or begin another line of a log.
std::string Printable(const std::string& text);

struct FrameLimits {
  uint32_t rows = 64;
  uint32_t columns = 1 << 16;
  uint64_t payload_bytes = 16u << 20;
};

// Appends header and payload.
void AppendFrame(const Frame& frame, std::vector<uint8_t>* bytes);
// The same with rows of floats as payload, which are not copied twice.
void AppendFrame(Frame frame, const float* rows, std::vector<uint8_t>* bytes);

class FrameParser {
 public:
  explicit FrameParser(const FrameLimits& limits) : limits_(limits) {}
  // For the frames whose header has not come yet.
  void set_limits(const FrameLimits& limits) { limits_ = limits; }

  void Feed(const uint8_t* bytes, size_t n) { bytes_.insert(bytes_.end(), bytes, bytes + n); }
  // Takes the next whole frame. RETURNS: once something was wrong, from then on: kNotSupported for
  // another version of the protocol, else kCorrupt.
  Status Next(Frame* frame, bool* found);
  // Bytes of a frame that has not come as a whole.
  size_t n_unfinished() const { return bytes_.size() - begin_; }

 private:
  Status ReadHeader();
  Status CheckHeader() const;

  FrameLimits limits_;
  std::vector<uint8_t> bytes_;
  size_t begin_ = 0;  // of what was not taken
  bool have_header_ = false;
  Frame header_;
  uint64_t payload_bytes_ = 0, sum_ = 0;
  Status broken_;
};

}  // namespace remoe

#endif  // REMOE_WIRE_FRAME_H_

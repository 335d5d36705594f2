// What an engine and a worker tell each other before the first row.
//
// Whatever can change a bit of a result is in the Identity, and has to be equal on both sides: which
// program, which llama.cpp, which processor, which model, which weights. The Welcome then says what
// the worker serves, with a sum over the bytes of each expert, and what it allows.
//
// Plain values; a parser refuses what contradicts its own size. One thread at a time.
#ifndef REMOE_WIRE_HANDSHAKE_H_
#define REMOE_WIRE_HANDSHAKE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

struct Identity {
  std::string engine;        // version of remoe-edge
  std::string llama_build;   // of ggml
  std::string architecture;  // of the processor
  std::string cpu_features;  // that the kernels use
  std::string model;         // fingerprint, whatever the routers
  std::string layout;        // types and shapes of the experts
  bool repacked = false;

  std::vector<uint8_t> Bytes() const;
  static Result<Identity> Parse(const std::vector<uint8_t>& bytes);
};

// Empty when they are equal, else what is not, as "its X is A, ours is B".
std::string WhyOther(const Identity& ours, const Identity& its);

struct ServedExpert {
  uint32_t layer = 0;
  uint32_t expert = 0;
  uint64_t sum = 0;  // Checksum64 over the sums of its matrices, then its biases
};

struct Welcome {
  Identity identity;
  uint32_t credits = 0;        // asks that one engine may have under way
  uint32_t max_rows = 0;       // of one ask
  uint32_t capacity = 0;       // experts that engines may choose; 0: it serves what it was told to
  bool sends_weights = false;  // as the file has them
  std::vector<ServedExpert> experts;

  std::vector<uint8_t> Bytes() const;
  static Result<Welcome> Parse(const std::vector<uint8_t>& bytes);
};

// An expert that an engine would like to be held, and how much.
struct WishedExpert {
  uint32_t layer = 0;
  uint32_t expert = 0;
  float worth = 0;  // finite, from 0 to 1
};
std::vector<uint8_t> WishBytes(const std::vector<WishedExpert>& wish);
Result<std::vector<WishedExpert>> ParseWish(const std::vector<uint8_t>& bytes);

// What has changed of what a worker holds. First the dropped ones leave.
struct HeldChange {
  std::vector<ServedExpert> dropped, added;  // sums of the added ones alone

  std::vector<uint8_t> Bytes() const;
  static Result<HeldChange> Parse(const std::vector<uint8_t>& bytes);
};

}  // namespace remoe

#endif  // REMOE_WIRE_HANDSHAKE_H_

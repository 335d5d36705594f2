// Prob8: a probability in one byte, 16 steps to the octave from 1 down to 2^-15.9, and 0.
//
// The code is the leading bits of the IEEE-754 float (exponent and 4 bits of mantissa), rounded to
// the nearest and shifted so that 1.0 is 255: within 3.2 % of the value, no logarithm, the same
// bits on every machine. FromProb8(ToProb8(FromProb8(c))) == FromProb8(c), so a policy that
// quantises what it is given decides alike from a live router and from a recorded trace. Pure
// functions, safe in any thread.
#ifndef REMOE_BASE_PROB8_H_
#define REMOE_BASE_PROB8_H_

#include <cstdint>
#include <cstring>

namespace remoe {

constexpr int32_t kProb8Bias = 0x7F0 - 255;  // leading 13 bits of 1.0f, less its code

// Values above 1 count as 1; below 2^-15.9, negative and NaN as 0.
inline uint8_t ToProb8(float p) {
  if (!(p > 0.0f)) return 0;
  int32_t bits;
  std::memcpy(&bits, &p, sizeof bits);
  const int32_t code = ((bits + (1 << 18)) >> 19) - kProb8Bias;
  return static_cast<uint8_t>(code < 0 ? 0 : code > 255 ? 255 : code);
}

inline float FromProb8(uint8_t code) {
  if (code == 0) return 0.0f;
  const int32_t bits = (code + kProb8Bias) << 19;
  float p;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

}  // namespace remoe

#endif  // REMOE_BASE_PROB8_H_

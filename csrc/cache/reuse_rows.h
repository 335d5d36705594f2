// Arithmetic on rows of scores: what ReuseBiasedPolicy does to all experts of a layer at once.
//
// A row has a value per expert, n of them, n a multiple of 16 where it is of floats, so that the
// loops vectorise whole. The build switches fused multiply-add off, so that every machine scores to
// the same bit. Pure functions on the caller's memory; thread-safe.
#ifndef REMOE_CACHE_REUSE_ROWS_H_
#define REMOE_CACHE_REUSE_ROWS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace remoe::rows {

constexpr float kLiftPrior = 30;  // pseudo-uses that pull a learned link towards none
constexpr float kRankScale = 1 << 20;

// Natural logarithm of a positive normal float, within 2e-4; the same on every machine.
inline float Log(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const float exponent = static_cast<float>((bits >> 23) - 127);
  bits = (bits & 0x7fffff) | 0x3f800000;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float poly =
      -1.7417939f + m * (2.8212026f + m * (-1.4699568f + m * (0.44717955f - 0.056570851f * m)));
  return (poly + exponent) * 0.69314718f;
}

// 1 / (1 + e^-x), within 1e-5; the same on every machine. What is no number comes out as 0 or so.
inline float Chance(float x) {
  const float low = x > -20.0f ? x : -20.0f;
  const float powers = (low < 20.0f ? low : 20.0f) * 1.44269504f;  // e^x is 2 to it
  // The nearest integer, by what is lost beside a large number.
  const float whole = (powers + 12582912.0f) - 12582912.0f;
  const float t = (powers - whole) * 0.69314718f;
  const float fraction =
      1 + t * (1 + t * (0.5f + t * (0.16666667f + t * (0.041666667f + t * 0.008333333f))));
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  const float e = fraction * scale;
  return e / (1 + e);
}

// The score as an integer in its order. What is no number ranks lowest: the comparison is written so
// that a NaN fails it.
inline int32_t ToRank(float score) {
  const float high = score > -1000.0f ? score : -1000.0f;
  return static_cast<int32_t>(std::min(high, 1000.0f) * kRankScale);
}
void ToRanks(const float* score, int32_t* ranks, size_t n);
int32_t Least(const int32_t* ranks, size_t n);

// average := average * fade + now * (1 - fade).
void Fade(float* average, float fade, const float* now, size_t n);
// out := log(x + small).
void Logs(const float* x, float small, float* out, size_t n);
// most := max(most, x).
void Most(const float* x, float* most, size_t n);
// Steps since the last use, and the logarithm of one more.
void Idle(const float* used, float* idle, float* log_idle, size_t n);

// Sums of links in 16 bits, and from there into a row of floats.
void AddRow(const int8_t* row, int16_t* sums, size_t n);
void AddFourRows(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, int16_t* sums,
                 size_t n);
void AddSums(const int16_t* sums, float scale, float* out, size_t n);

// out += weight * x, for one column or four.
void AddScaled(const float* x, float weight, float* out, size_t n);
void AddFourScaled(const float* a, const float* b, const float* c, const float* d,
                   const float* weights, float* out, size_t n);

// Logits against what came, 0 or 1: Chance(logit) - came, and the logarithmic losses.
void Errors(const float* logits, const float* came, float* errors, size_t n);
void LogLosses(const float* logits, const float* came, float* losses, size_t n);
// average := average * fade + x^2 * (1 - fade).
void FadeSquares(float* average, float fade, const float* x, size_t n);
// A step of AdaGrad after `steps` of them with squared slopes of this mean; `decay` pulls to 0.
void Descend(const float* errors, const float* mean_squares, float steps, float rate, float decay,
             float* weights, size_t n);

// out += log(counts + prior), for one row of counts; for four at the price of one: their product
// stays far inside a float.
void AddLogOfOne(const float* a, const float* share, float* out, size_t n);
void AddLogOfFour(const float* a, const float* b, const float* c, const float* d,
                  const float* share, float* out, size_t n);

}  // namespace remoe::rows

#endif  // REMOE_CACHE_REUSE_ROWS_H_

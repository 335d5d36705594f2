#include "cache/reuse_rows.h"

#include <cmath>

// x86-64 gets an AVX2 copy of every loop, chosen at load time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define REMOE_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define REMOE_WIDE
#endif

namespace remoe::rows {

REMOE_WIDE void Fade(float* average, float fade, const float* now, size_t n) {
  const float rest = 1 - fade;
  for (size_t j = 0; j < n; j++) average[j] = average[j] * fade + rest * now[j];
}

REMOE_WIDE void Logs(const float* x, float small, float* out, size_t n) {
  for (size_t j = 0; j < n; j++) out[j] = Log(x[j] + small);
}

REMOE_WIDE void AddRow(const int8_t* row, int16_t* sums, size_t n) {
  for (size_t j = 0; j < n; j++) sums[j] = static_cast<int16_t>(sums[j] + row[j]);
}

REMOE_WIDE void AddFourRows(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d,
                            int16_t* sums, size_t n) {
  for (size_t j = 0; j < n; j++) {
    sums[j] = static_cast<int16_t>(sums[j] + ((a[j] + b[j]) + (c[j] + d[j])));
  }
}

REMOE_WIDE void AddSums(const int16_t* sums, float scale, float* out, size_t n) {
  for (size_t j = 0; j < n; j++) out[j] += scale * static_cast<float>(sums[j]);
}

REMOE_WIDE void AddFourScaled(const float* a, const float* b, const float* c, const float* d,
                              const float* weights, float* out, size_t n) {
  const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
  for (size_t j = 0; j < n; j++) out[j] += (w0 * a[j] + w1 * b[j]) + (w2 * c[j] + w3 * d[j]);
}

REMOE_WIDE void AddScaled(const float* x, float weight, float* out, size_t n) {
  for (size_t j = 0; j < n; j++) out[j] += weight * x[j];
}

REMOE_WIDE void Most(const float* x, float* most, size_t n) {
  for (size_t j = 0; j < n; j++) most[j] = x[j] > most[j] ? x[j] : most[j];
}

REMOE_WIDE void Errors(const float* logits, const float* came, float* errors, size_t n) {
  for (size_t j = 0; j < n; j++) errors[j] = Chance(logits[j]) - came[j];
}

REMOE_WIDE void LogLosses(const float* logits, const float* came, float* losses, size_t n) {
  for (size_t j = 0; j < n; j++) {
    losses[j] = -Log(Chance((came[j] + came[j] - 1) * logits[j]));
  }
}

REMOE_WIDE void FadeSquares(float* average, float fade, const float* x, size_t n) {
  const float rest = 1 - fade;
  for (size_t j = 0; j < n; j++) average[j] = average[j] * fade + rest * (x[j] * x[j]);
}

REMOE_WIDE void Descend(const float* errors, const float* mean_squares, float steps, float rate,
                        float decay, float* weights, size_t n) {
  for (size_t j = 0; j < n; j++) {
    const float slope = errors[j] + decay * weights[j];
    weights[j] -= rate * slope / std::sqrt(steps * mean_squares[j] + 0.05f);
  }
}

REMOE_WIDE void AddLogOfOne(const float* a, const float* share, float* out, size_t n) {
  for (size_t j = 0; j < n; j++) out[j] += Log(a[j] + kLiftPrior * share[j]);
}

REMOE_WIDE void AddLogOfFour(const float* a, const float* b, const float* c, const float* d,
                             const float* share, float* out, size_t n) {
  for (size_t j = 0; j < n; j++) {
    const float prior = kLiftPrior * share[j];
    out[j] += Log((a[j] + prior) * (b[j] + prior) * ((c[j] + prior) * (d[j] + prior)));
  }
}

REMOE_WIDE void Idle(const float* used, float* idle, float* log_idle, size_t n) {
  for (size_t j = 0; j < n; j++) {
    idle[j] = (idle[j] + 1) * (1 - used[j]);
    log_idle[j] = Log(1 + idle[j]);
  }
}

REMOE_WIDE void ToRanks(const float* score, int32_t* ranks, size_t n) {
  for (size_t j = 0; j < n; j++) ranks[j] = ToRank(score[j]);
}

REMOE_WIDE int32_t Least(const int32_t* ranks, size_t n) {
  int32_t least = INT32_MAX;
  for (size_t j = 0; j < n; j++) least = ranks[j] < least ? ranks[j] : least;
  return least;
}

}  // namespace remoe::rows

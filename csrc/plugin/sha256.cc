#include "plugin/sha256.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"

namespace remoe::plugin {

namespace {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t Turn(uint32_t value, int by) {
  return value >> by | value << (32 - by);
}

}  // namespace

void Sha256::Block(const uint8_t* block) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 |
           uint32_t{block[4 * i + 2]} << 8 | uint32_t{block[4 * i + 3]};
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t near = Turn(w[i - 15], 7) ^ Turn(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t far = Turn(w[i - 2], 17) ^ Turn(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + near + w[i - 7] + far;
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (int i = 0; i < 64; i++) {
    const uint32_t chosen = (e & f) ^ (~e & g);
    const uint32_t one = h + (Turn(e, 6) ^ Turn(e, 11) ^ Turn(e, 25)) + chosen + kRound[i] + w[i];
    const uint32_t most = (a & b) ^ (a & c) ^ (b & c);
    const uint32_t two = (Turn(a, 2) ^ Turn(a, 13) ^ Turn(a, 22)) + most;
    h = g;
    g = f;
    f = e;
    e = d + one;
    d = c;
    c = b;
    b = a;
    a = one + two;
  }
  const uint32_t added[8] = {a, b, c, d, e, f, g, h};
  for (int i = 0; i < 8; i++) state_[i] += added[i];
}

void Sha256::Add(const void* data, size_t n_bytes) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (n_bytes > 0) {
    const size_t have = n_bytes_ % pending_.size();
    const size_t n = std::min(n_bytes, pending_.size() - have);
    std::memcpy(&pending_[have], bytes, n);
    n_bytes_ += n;
    bytes += n;
    n_bytes -= n;
    if (n_bytes_ % pending_.size() == 0) Block(pending_.data());
  }
}

std::string Sha256::Hex() {
  const uint64_t n_bits = n_bytes_ * 8;
  const uint8_t one = 0x80, zero = 0;
  Add(&one, 1);
  while (n_bytes_ % pending_.size() != 56) Add(&zero, 1);
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = static_cast<uint8_t>(n_bits >> (56 - 8 * i));
  Add(length, sizeof(length));
  std::string hex;
  for (const uint32_t word : state_) hex += Format("%08x", word);
  return hex;
}

}  // namespace remoe::plugin

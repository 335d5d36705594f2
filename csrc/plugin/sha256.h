// SHA-256 of bytes that come in pieces, for the fingerprint that remoe-edge gives a model.
//
// Add() what there is, in order; then Hex() once. Nothing here is secret, and nothing is fast: a few
// MiB for a model.
//
// A plain value; one thread at a time.
#ifndef REMOE_PLUGIN_SHA256_H_
#define REMOE_PLUGIN_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace remoe::plugin {

class Sha256 {
 public:
  void Add(const void* data, size_t n_bytes);
  // 64 lower-case digits. Nothing may be added afterwards.
  std::string Hex();

 private:
  void Block(const uint8_t* block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> pending_{};
  uint64_t n_bytes_ = 0;
};

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_SHA256_H_

// Checksum64: tells damaged bytes from whole ones, at the speed of memory.
//
// Every word goes through steps that lose nothing (xor, an odd factor, xor of its own upper half),
// so two spans that differ in one word always differ in the sum; others collide once in 2^64. It
// guards against bad memory, disks and links. It is no protection from somebody who wants a
// collision.
//
// Bytes may come in pieces of any size: the sum is that of the whole. One thread at a time.
#ifndef REMOE_WIRE_CHECKSUM_H_
#define REMOE_WIRE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace remoe {

class Checksum64 {
 public:
  void Add(const void* bytes, size_t n) {
    const auto* at = static_cast<const uint8_t*>(bytes);
    n_bytes_ += n;
    while (n > 0 && n_held_ > 0) {
      held_[n_held_++] = *at++;
      n--;
      if (n_held_ == sizeof(held_)) TakeHeld();
    }
    for (; n >= sizeof(uint64_t); n -= sizeof(uint64_t), at += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, at, sizeof(word));
      Mix(word);
    }
    if (n > 0) {
      std::memcpy(held_, at, n);
      n_held_ = n;
    }
  }

  uint64_t sum() const {
    Checksum64 whole = *this;
    if (whole.n_held_ > 0) {
      std::memset(whole.held_ + whole.n_held_, 0, sizeof(held_) - whole.n_held_);
      whole.TakeHeld();
    }
    whole.Mix(n_bytes_);
    return whole.state_;
  }

 private:
  void TakeHeld() {
    uint64_t word;
    std::memcpy(&word, held_, sizeof(word));
    n_held_ = 0;
    Mix(word);
  }
  void Mix(uint64_t word) {
    state_ = (state_ ^ word) * 0x9e3779b97f4a7c15u;
    state_ ^= state_ >> 32;
  }

  uint64_t state_ = 0x72656d6f65u;
  uint64_t n_bytes_ = 0;
  uint8_t held_[sizeof(uint64_t)] = {};  // the beginning of a word
  size_t n_held_ = 0;
};

}  // namespace remoe

#endif  // REMOE_WIRE_CHECKSUM_H_

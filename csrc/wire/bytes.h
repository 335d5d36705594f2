// ByteWriter and ByteReader: values as bytes, and back.
//
// Numbers as little-endian memory has them, texts with their length in front. A reader never goes
// beyond its bytes: what is not there reads as zero or "", and ok() is false from then on. Counts
// are for the caller to check against left() before anything is allocated. One thread at a time.
#ifndef REMOE_WIRE_BYTES_H_
#define REMOE_WIRE_BYTES_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace remoe {

class ByteWriter {
 public:
  template <typename T>
  void Number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* at = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), at, at + sizeof(value));
  }
  void Text(const std::string& text) {
    Number(static_cast<uint32_t>(text.size()));
    bytes_.insert(bytes_.end(), text.begin(), text.end());
  }
  std::vector<uint8_t> Take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

class ByteReader {
 public:
  // The bytes outlive this.
  ByteReader(const uint8_t* bytes, size_t n) : at_(bytes), left_(n) {}
  template <typename T>
  T Number() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    if (!Has(sizeof(value))) return value;
    std::memcpy(&value, at_, sizeof(value));
    Skip(sizeof(value));
    return value;
  }
  std::string Text() {
    const auto n = Number<uint32_t>();
    if (!Has(n)) return "";
    std::string text(reinterpret_cast<const char*>(at_), n);
    Skip(n);
    return text;
  }
  bool ok() const { return ok_; }
  size_t left() const { return left_; }

 private:
  bool Has(size_t n) {
    ok_ &= n <= left_;
    return ok_;
  }
  void Skip(size_t n) {
    at_ += n;
    left_ -= n;
  }
  const uint8_t* at_;
  size_t left_;
  bool ok_ = true;
};

}  // namespace remoe

#endif  // REMOE_WIRE_BYTES_H_

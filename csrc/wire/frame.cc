#include "wire/frame.h"

#include <cstring>

#include "base/format.h"
#include "wire/checksum.h"

namespace remoe {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are written as memory has them");

constexpr uint32_t kMagic = 0x46584d52;  // "RMXF"
constexpr size_t kSumAt = 48;

template <typename T>
void Put(T value, uint8_t* at) {
  std::memcpy(at, &value, sizeof(value));
}
template <typename T>
T Get(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

bool HasRows(FrameKind kind) {
  return kind == FrameKind::kAsk || kind == FrameKind::kAnswer;
}

uint64_t SumOf(const uint8_t* header, const uint8_t* payload, size_t n) {
  Checksum64 sum;
  sum.Add(header, kSumAt);
  sum.Add(payload, n);
  return sum.sum();
}

void Append(const Frame& frame, const void* payload, size_t n, std::vector<uint8_t>* bytes) {
  const size_t begin = bytes->size();
  bytes->resize(begin + kFrameHeaderBytes + n);
  uint8_t* at = bytes->data() + begin;
  Put(kMagic, at);
  Put(kProtocolVersion, at + 4);
  Put(static_cast<uint16_t>(frame.kind), at + 6);
  Put(frame.request, at + 8);
  Put(frame.layer, at + 16);
  Put(frame.expert, at + 20);
  Put(frame.rows, at + 24);
  Put(frame.columns, at + 28);
  Put(frame.recipe, at + 32);
  Put(frame.time_us, at + 36);
  Put(static_cast<uint64_t>(n), at + 40);
  if (n > 0) std::memcpy(at + kFrameHeaderBytes, payload, n);
  Put(SumOf(at, at + kFrameHeaderBytes, n), at + kSumAt);
}

}  // namespace

void AppendFrame(const Frame& frame, std::vector<uint8_t>* bytes) {
  Append(frame, frame.payload.data(), frame.payload.size(), bytes);
}

void AppendFrame(Frame frame, const float* rows, std::vector<uint8_t>* bytes) {
  Append(frame, rows, sizeof(float) * frame.rows * frame.columns, bytes);
}

std::string Printable(const std::string& text) {
  constexpr size_t kMost = 300;
  std::string shown = text.substr(0, kMost);
  for (char& each : shown) {
    if (static_cast<unsigned char>(each) < 0x20 || each == 0x7f) each = ' ';
  }
  return text.size() > kMost ? shown + "..." : shown;
}

Status FrameParser::ReadHeader() {
  const uint8_t* at = bytes_.data() + begin_;
  if (Get<uint32_t>(at) != kMagic) return Status(Code::kCorrupt, "no frame begins there");
  if (Get<uint16_t>(at + 4) != kProtocolVersion) {
    return Status(Code::kNotSupported, Format("it speaks version %d of the protocol, not %d",
                                              Get<uint16_t>(at + 4), kProtocolVersion));
  }
  const uint16_t kind = Get<uint16_t>(at + 6);
  if (kind == 0 || kind > kLastFrameKind) {
    return Status(Code::kCorrupt, Format("a frame of unknown kind %d", kind));
  }
  header_ = Frame();
  header_.kind = static_cast<FrameKind>(kind);
  header_.request = Get<uint64_t>(at + 8);
  header_.layer = Get<uint32_t>(at + 16);
  header_.expert = Get<uint32_t>(at + 20);
  header_.rows = Get<uint32_t>(at + 24);
  header_.columns = Get<uint32_t>(at + 28);
  header_.recipe = Get<uint32_t>(at + 32);
  header_.time_us = Get<uint32_t>(at + 36);
  payload_bytes_ = Get<uint64_t>(at + 40);
  sum_ = Get<uint64_t>(at + kSumAt);
  return CheckHeader();
}

Status FrameParser::CheckHeader() const {
  if (payload_bytes_ > limits_.payload_bytes) {
    return Status(Code::kCorrupt, Format("a frame of %llu bytes, above the limit of %llu",
                                         static_cast<unsigned long long>(payload_bytes_),
                                         static_cast<unsigned long long>(limits_.payload_bytes)));
  }
  if (!HasRows(header_.kind)) return Status::Ok();
  if (header_.rows == 0 || header_.rows > limits_.rows || header_.columns == 0 ||
      header_.columns > limits_.columns) {
    return Status(Code::kCorrupt,
                  Format("a frame of %u rows of %u values, above the limit of %u "
                         "of %u",
                         header_.rows, header_.columns, limits_.rows, limits_.columns));
  }
  if (payload_bytes_ != sizeof(float) * uint64_t{header_.rows} * header_.columns) {
    return Status(Code::kCorrupt, "a frame whose size is not that of its rows");
  }
  return Status::Ok();
}

Status FrameParser::Next(Frame* frame, bool* found) {
  *found = false;
  if (!broken_.ok()) return broken_;
  if (!have_header_) {
    if (bytes_.size() - begin_ < kFrameHeaderBytes) return Status::Ok();
    broken_ = ReadHeader();
    if (!broken_.ok()) return broken_;
    have_header_ = true;
  }
  if (bytes_.size() - begin_ - kFrameHeaderBytes < payload_bytes_) return Status::Ok();
  const uint8_t* header = bytes_.data() + begin_;
  const uint8_t* payload = header + kFrameHeaderBytes;
  if (SumOf(header, payload, payload_bytes_) != sum_) {
    broken_ = Status(Code::kCorrupt, "a frame that was damaged on the way");
    return broken_;
  }
  *frame = std::move(header_);
  frame->payload.assign(payload, payload + payload_bytes_);
  have_header_ = false;
  begin_ += kFrameHeaderBytes + payload_bytes_;
  if (begin_ == bytes_.size() || begin_ > (1u << 20)) {
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
    begin_ = 0;
  }
  *found = true;
  return Status::Ok();
}

}  // namespace remoe

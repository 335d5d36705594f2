#include "trace/trace_file.h"

#include <cstring>

#include "base/format.h"

namespace remoe {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "traces are little-endian");

namespace {

// Far above any model; keeps products of hostile fields inside 64 bits.
constexpr uint32_t kMaxLayers = 4096, kMaxExperts = 16384, kMaxTokens = 1 << 24;

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

class Parser {
 public:
  Parser(const uint8_t* data, size_t size, const std::string& path)
      : data_(data), size_(size), path_(path) {}

  Result<TraceIndex> Parse() {
    REMOE_RETURN_IF_ERROR(ParseHeader());
    index_.offsets.push_back(0);
    seen_.assign(index_.header.n_experts, 0);
    while (at_ < size_) REMOE_RETURN_IF_ERROR(ParseRecord());
    if (index_.step.size() != n_events_) {
      return Corrupt(Format("holds %zu events and its header promises %llu; record it again",
                            index_.step.size(), static_cast<unsigned long long>(n_events_)));
    }
    return std::move(index_);
  }

 private:
  Status Corrupt(const std::string& what) const {
    return Status(Code::kCorrupt, path_ + ": " + what);
  }
  Status CorruptEvent(const std::string& what) const {
    return Corrupt(Format("event %zu at byte %zu ", index_.step.size(), at_) + what);
  }

  Status ParseHeader() {
    if (size_ < kTraceHeaderBytes || std::memcmp(data_, kTraceMagic, 8) != 0) {
      return Corrupt("is no trace (it does not begin with REMOETRC)");
    }
    if (Load<uint32_t>(data_ + 8) != kTraceVersion) {
      return Corrupt(Format("is a trace of version %u and this program reads version %u",
                            Load<uint32_t>(data_ + 8), kTraceVersion));
    }
    TraceHeader& header = index_.header;
    header.n_layers = Load<uint32_t>(data_ + 16);
    header.n_experts = Load<uint32_t>(data_ + 20);
    header.top_k = Load<uint32_t>(data_ + 24);
    if (header.n_layers == 0 || header.n_layers > kMaxLayers || header.n_experts == 0 ||
        header.n_experts > kMaxExperts || header.top_k == 0 || header.top_k > header.n_experts) {
      return Corrupt(Format("has an impossible header: %u layers, %u experts, top-%u",
                            header.n_layers, header.n_experts, header.top_k));
    }
    const uint32_t header_bytes = Load<uint32_t>(data_ + 12);
    const uint32_t meta_bytes = Load<uint32_t>(data_ + 28);
    if (header_bytes > size_ || header_bytes < kTraceHeaderBytes || header_bytes % 4 != 0 ||
        header_bytes - kTraceHeaderBytes < meta_bytes) {
      return Corrupt(Format("has a header of %u bytes with %u of JSON in a file of %zu",
                            header_bytes, meta_bytes, size_));
    }
    n_events_ = Load<uint64_t>(data_ + 32);
    if (n_events_ == kTraceUnfinished) {
      return Corrupt("was not finished: the recording stopped early; record it again");
    }
    const char* fingerprint = reinterpret_cast<const char*>(data_ + 40);
    header.fingerprint.assign(fingerprint, strnlen(fingerprint, kTraceFingerprintBytes));
    header.meta.assign(reinterpret_cast<const char*>(data_ + kTraceHeaderBytes), meta_bytes);
    at_ = header_bytes;
    return Status::Ok();
  }

  Status ParseRecord() {
    const TraceHeader& header = index_.header;
    if (size_ - at_ < kTraceRecordBytes) return CorruptEvent("is cut off");
    const uint8_t* record = data_ + at_;
    const uint16_t layer = Load<uint16_t>(record + 4);
    const uint8_t phase = record[6], flags = record[7];
    const uint32_t n_tokens = Load<uint32_t>(record + 8);
    const uint16_t n = Load<uint16_t>(record + 12), n_prob_tokens = Load<uint16_t>(record + 14);
    if ((flags & ~kTraceHasIds) != kTraceRecordMark || phase > 1) {
      return CorruptEvent("does not begin like an event");
    }
    if (layer >= header.n_layers || n > header.n_experts || n_tokens == 0 ||
        n_tokens > kMaxTokens || n_prob_tokens > n_tokens) {
      return CorruptEvent(
          Format("is impossible: layer %d of %u, %d experts of %u, %u tokens, %d "
                 "with probabilities",
                 layer, header.n_layers, n, header.n_experts, n_tokens, n_prob_tokens));
    }
    const bool has_ids = (flags & kTraceHasIds) != 0;
    if (!has_ids && n_tokens != 1) return CorruptEvent("has several tokens and no ids for them");
    const uint64_t ids = has_ids ? uint64_t{n_tokens} * header.top_k : 0;
    const uint64_t probs = uint64_t{n_prob_tokens} * header.n_experts;
    const uint64_t bytes = (kTraceRecordBytes + 2 * (n + ids) + probs + 3) / 4 * 4;
    if (bytes > size_ - at_) {
      return CorruptEvent(Format("needs %llu bytes and the file ends after %zu",
                                 static_cast<unsigned long long>(bytes), size_ - at_));
    }
    const size_t event = index_.step.size() + 1;
    const uint8_t* experts = record + kTraceRecordBytes;
    for (int i = 0; i < n; i++) {
      const uint16_t expert = Load<uint16_t>(experts + 2 * i);
      if (expert >= header.n_experts) return CorruptEvent(Format("names expert %d", expert));
      if (seen_[expert] == event) return CorruptEvent(Format("names expert %d twice", expert));
      seen_[expert] = event;
      index_.experts.push_back(expert);
    }
    for (uint64_t i = 0; i < ids; i++) {
      const uint16_t expert = Load<uint16_t>(experts + 2 * (n + i));
      if (expert >= header.n_experts || seen_[expert] != event) {
        return CorruptEvent(
            Format("routes a token to expert %d, which is not among its experts", expert));
      }
    }
    const int64_t ids_at = static_cast<int64_t>(at_) + kTraceRecordBytes + 2 * n;
    const int64_t last_probs = ids_at + static_cast<int64_t>(2 * ids + probs) - header.n_experts;
    index_.step.push_back(Load<uint32_t>(record));
    index_.layer.push_back(layer);
    index_.phase.push_back(phase);
    index_.n_tokens.push_back(n_tokens);
    index_.offsets.push_back(static_cast<int64_t>(index_.experts.size()));
    index_.ids_at.push_back(has_ids ? ids_at : -1);
    index_.probs_at.push_back(n_prob_tokens > 0 ? last_probs : -1);
    index_.n_prob_tokens.push_back(n_prob_tokens);
    at_ += bytes;
    return Status::Ok();
  }

  const uint8_t* data_;
  const size_t size_;
  const std::string& path_;
  size_t at_ = 0;
  uint64_t n_events_ = 0;
  std::vector<size_t> seen_;  // by expert: 1 + the last event that named it
  TraceIndex index_;
};

}  // namespace

Result<TraceIndex> ParseTrace(const uint8_t* data, size_t size, const std::string& path) {
  return Parser(data, size, path).Parse();
}

}  // namespace remoe

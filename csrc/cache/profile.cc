#include "cache/profile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/format.h"
#include "base/rounding.h"
#include "cache/reuse_columns.h"

namespace remoe {

namespace {

constexpr char kMagic[9] = "REMOEPRF";
constexpr uint32_t kVersion = 1, kHeaderBytes = 128;
constexpr size_t kFingerprintBytes = 64, kSizeAt = 104, kChecksumAt = 112, kUsesAt = 120;

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

uint64_t Checksum(const uint8_t* data, size_t size) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < size; i++) {
    const bool own = i >= kChecksumAt && i < kChecksumAt + 8;
    hash = (hash ^ (own ? 0 : data[i])) * 0x100000001b3;
  }
  return hash;
}

template <typename T>
void Append(std::vector<uint8_t>* bytes, const std::vector<T>& values) {
  const auto* raw = reinterpret_cast<const uint8_t*>(values.data());
  bytes->insert(bytes->end(), raw, raw + values.size() * sizeof(T));
}

template <typename T>
const uint8_t* Take(const uint8_t* at, size_t n, std::vector<T>* values) {
  values->resize(n);
  if (n > 0) std::memcpy(values->data(), at, n * sizeof(T));
  return at + n * sizeof(T);
}

// Far above any model; they keep products of hostile fields inside 64 bits.
constexpr uint64_t kMostLayers = 4096, kMostExperts = 16384, kMostWeights = 1024, kMostShares = 64,
                   kMostContexts = 64;
// Far above any fit, and low enough that no sum of products leaves a float.
constexpr float kMostWeight = 1e6f, kMostUses = 1e12f;

// The counts of a header, wide enough to multiply.
struct Counts {
  uint64_t layers, experts, weights, shares, contexts, uses;

  uint64_t scales() const { return layers * contexts; }
  uint64_t links() const { return layers * contexts * experts * experts; }
  uint64_t body_bytes() const {
    return 4 * (shares + shares * weights + scales() + uses) + links();
  }

  // RETURNS: what is wrong with them, or null.
  const char* Fault() const {
    if (layers > kMostLayers || experts > kMostExperts || weights > kMostWeights ||
        shares > kMostShares || contexts > kMostContexts) {
      return "a count beyond any model's";
    }
    if ((layers == 0) != (experts == 0)) return "layers without experts, or the reverse";
    if ((weights == 0) != (shares == 0)) return "weights without cache sizes, or the reverse";
    if (contexts != 0 && layers == 0) return "links of no layers";
    if (uses != 0 && (layers == 0 || uses != layers * experts)) {
      return "another number of uses than of experts";
    }
    return nullptr;
  }
};

// Plain text that any terminal and any decoder takes.
bool IsAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

std::string WeightName(size_t i, size_t n_weights) {
  return n_weights == kReuseColumnCount ? kReuseColumns[i].name : Format("number %zu", i);
}

}  // namespace

Result<Profile> Profile::Parse(const uint8_t* data, size_t size, const std::string& name) {
  const auto corrupt = [&name](const std::string& what) {
    return Status(Code::kCorrupt, name + ": " + what + "; fit it again with `remoe-edge profile`");
  };
  if (size < kHeaderBytes || std::memcmp(data, kMagic, 8) != 0) {
    return Status(Code::kCorrupt, name + ": is no profile (it does not begin with REMOEPRF)");
  }
  if (Load<uint32_t>(data + 8) != kVersion) {
    return corrupt(Format("is a profile of version %u and this program reads version %u",
                          Load<uint32_t>(data + 8), kVersion));
  }
  if (Load<uint64_t>(data + kSizeAt) != size) {
    return corrupt(Format("has %zu bytes and should have %llu", size,
                          static_cast<unsigned long long>(Load<uint64_t>(data + kSizeAt))));
  }
  if (Load<uint64_t>(data + kChecksumAt) != Checksum(data, size)) {
    return corrupt("is damaged (its checksum differs)");
  }
  const uint64_t header_bytes = Load<uint32_t>(data + 12), meta_bytes = Load<uint32_t>(data + 36);
  Counts counts;
  counts.layers = Load<uint32_t>(data + 16);
  counts.experts = Load<uint32_t>(data + 20);
  counts.weights = Load<uint32_t>(data + 24);
  counts.shares = Load<uint32_t>(data + 28);
  counts.contexts = Load<uint32_t>(data + 32);
  counts.uses = Load<uint32_t>(data + kUsesAt);
  if (const char* fault = counts.Fault()) {
    return corrupt(std::string("contradicts itself: ") + fault);
  }
  if (header_bytes > size || header_bytes % 8 != 0 || header_bytes < kHeaderBytes + meta_bytes ||
      size - header_bytes != counts.body_bytes()) {
    return corrupt("contradicts its own size");
  }
  Profile profile;
  profile.n_layers = static_cast<int>(counts.layers);
  profile.n_experts = static_cast<int>(counts.experts);
  profile.n_weights = static_cast<int>(counts.weights);
  profile.n_contexts = static_cast<int>(counts.contexts);
  const char* fingerprint = reinterpret_cast<const char*>(data + 40);
  profile.fingerprint.assign(fingerprint, strnlen(fingerprint, kFingerprintBytes));
  profile.meta.assign(reinterpret_cast<const char*>(data + kHeaderBytes), meta_bytes);
  const uint8_t* at = data + header_bytes;
  at = Take(at, counts.shares, &profile.shares);
  at = Take(at, counts.shares * counts.weights, &profile.weights);
  at = Take(at, counts.scales(), &profile.scales);
  at = Take(at, counts.uses, &profile.uses);
  Take(at, counts.links(), &profile.links);
  const Status sound = profile.Check();
  if (!sound.ok()) return corrupt(sound.message());
  return profile;
}

Status Profile::Check() const {
  const auto corrupt = [](const std::string& what) { return Status(Code::kCorrupt, what); };
  if (n_layers < 0 || n_experts < 0 || n_weights < 0 || n_contexts < 0) {
    return corrupt("contradicts itself: a count below 0");
  }
  Counts counts;
  counts.layers = static_cast<uint64_t>(n_layers);
  counts.experts = static_cast<uint64_t>(n_experts);
  counts.weights = static_cast<uint64_t>(n_weights);
  counts.shares = shares.size();
  counts.contexts = static_cast<uint64_t>(n_contexts);
  counts.uses = uses.size();
  if (const char* fault = counts.Fault()) {
    return corrupt(std::string("contradicts itself: ") + fault);
  }
  if (weights.size() != counts.shares * counts.weights || scales.size() != counts.scales() ||
      links.size() != counts.links()) {
    return corrupt("contradicts itself: its parts differ in size");
  }
  if (fingerprint.size() > kFingerprintBytes || !IsAscii(fingerprint)) {
    return corrupt("has a fingerprint that is none");
  }
  // Comparisons are written so that a NaN fails them.
  for (size_t i = 0; i < shares.size(); i++) {
    if (shares[i] > (i == 0 ? 0 : shares[i - 1]) && shares[i] <= 1) continue;
    return corrupt(Format("its cache sizes must rise between 0 and 1, and one is %g", shares[i]));
  }
  for (size_t i = 0; i < weights.size(); i++) {
    if (std::fabs(weights[i]) < kMostWeight) continue;
    return corrupt(Format("its weight %s for a cache of %g is %g",
                          WeightName(i % counts.weights, counts.weights).c_str(),
                          shares[i / counts.weights], weights[i]));
  }
  for (size_t i = 0; i < scales.size(); i++) {
    if (std::fabs(scales[i]) < kMostWeight) continue;
    return corrupt(Format("its links' scale %zu of layer %zu is %g", i % counts.contexts,
                          i / counts.contexts, scales[i]));
  }
  for (size_t i = 0; i < uses.size(); i++) {
    if (uses[i] >= 0 && uses[i] < kMostUses) continue;
    return corrupt(Format("its uses of expert %zu of layer %zu are %g", i % counts.experts,
                          i / counts.experts, uses[i]));
  }
  return Status::Ok();
}

std::vector<uint8_t> Profile::Serialize() const {
  const uint32_t header_bytes = kHeaderBytes + static_cast<uint32_t>(RoundUp(meta.size(), 8));
  const uint32_t fields[] = {kVersion,
                             header_bytes,
                             static_cast<uint32_t>(n_layers),
                             static_cast<uint32_t>(n_experts),
                             static_cast<uint32_t>(n_weights),
                             static_cast<uint32_t>(shares.size()),
                             static_cast<uint32_t>(n_contexts),
                             static_cast<uint32_t>(meta.size())};
  std::vector<uint8_t> bytes(header_bytes, 0);
  std::memcpy(bytes.data(), kMagic, 8);
  std::memcpy(bytes.data() + 8, fields, sizeof fields);
  std::memcpy(bytes.data() + 40, fingerprint.data(), fingerprint.size());
  const uint32_t n_uses = static_cast<uint32_t>(uses.size());
  std::memcpy(bytes.data() + kUsesAt, &n_uses, sizeof n_uses);
  std::copy(meta.begin(), meta.end(), bytes.begin() + kHeaderBytes);
  Append(&bytes, shares);
  Append(&bytes, weights);
  Append(&bytes, scales);
  Append(&bytes, uses);
  Append(&bytes, links);
  const uint64_t size = bytes.size();
  std::memcpy(bytes.data() + kSizeAt, &size, sizeof size);
  const uint64_t checksum = Checksum(bytes.data(), bytes.size());
  std::memcpy(bytes.data() + kChecksumAt, &checksum, sizeof checksum);
  return bytes;
}

std::vector<float> Profile::WeightsFor(double share) const {
  const size_t n = static_cast<size_t>(n_weights);
  size_t above = 0;
  while (above < shares.size() && share > shares[above]) above++;
  const size_t low = above == 0 ? 0 : above - 1, high = std::min(above, shares.size() - 1);
  const double span = std::log(shares[high]) - std::log(shares[low]);
  const double mix = span > 0 ? (std::log(share) - std::log(shares[low])) / span : 0;
  std::vector<float> mixed(n);
  for (size_t i = 0; i < n; i++) {
    mixed[i] = static_cast<float>((1 - mix) * weights[low * n + i] + mix * weights[high * n + i]);
  }
  return mixed;
}

}  // namespace remoe

#include "cache/profile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/format.h"
#include "base/rounding.h"

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
  std::memcpy(values->data(), at, n * sizeof(T));
  return at + n * sizeof(T);
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
  uint32_t field[8];
  std::memcpy(field, data + 12, sizeof field - 4);
  const uint64_t header_bytes = field[0], n_layers = field[1], n_experts = field[2],
                 n_weights = field[3], n_knots = field[4], n_contexts = field[5],
                 meta_bytes = field[6], n_uses = Load<uint32_t>(data + kUsesAt);
  if (n_layers > 4096 || n_experts > 16384 || n_weights > 1024 || n_knots > 64 ||
      (n_weights == 0) != (n_knots == 0) || (n_uses != 0 && n_uses != n_layers * n_experts) ||
      n_contexts > 64 || header_bytes > size || header_bytes % 8 != 0 ||
      header_bytes < kHeaderBytes + meta_bytes ||
      size != header_bytes + 4 * (n_knots + n_knots * n_weights + n_layers * n_contexts + n_uses) +
                  n_layers * n_contexts * n_experts * n_experts) {
    return corrupt("contradicts its own size");
  }
  Profile profile;
  profile.n_layers = static_cast<int>(n_layers);
  profile.n_experts = static_cast<int>(n_experts);
  profile.n_weights = static_cast<int>(n_weights);
  profile.n_contexts = static_cast<int>(n_contexts);
  const char* fingerprint = reinterpret_cast<const char*>(data + 40);
  profile.fingerprint.assign(fingerprint, strnlen(fingerprint, kFingerprintBytes));
  profile.meta.assign(reinterpret_cast<const char*>(data + kHeaderBytes), meta_bytes);
  const uint8_t* at = data + header_bytes;
  at = Take(at, n_knots, &profile.shares);
  at = Take(at, n_knots * n_weights, &profile.weights);
  at = Take(at, n_layers * n_contexts, &profile.scales);
  at = Take(at, n_uses, &profile.uses);
  Take(at, n_layers * n_contexts * n_experts * n_experts, &profile.links);
  const auto finite = [](float x) { return std::isfinite(x) && std::fabs(x) < 1e6f; };
  const bool rising = std::is_sorted(profile.shares.begin(), profile.shares.end(),
                                     [](float a, float b) { return a <= b; }) ||
                      n_knots < 2;
  const bool fading = std::all_of(profile.uses.begin(), profile.uses.end(),
                                  [](float x) { return std::isfinite(x) && x >= 0; });
  if (!rising || !fading || (n_knots > 0 && !(profile.shares[0] > 0)) ||
      !std::all_of(profile.shares.begin(), profile.shares.end(), finite) ||
      !std::all_of(profile.weights.begin(), profile.weights.end(), finite) ||
      !std::all_of(profile.scales.begin(), profile.scales.end(), finite)) {
    return corrupt("holds numbers that make no sense");
  }
  return profile;
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
  std::memcpy(bytes.data() + 40, fingerprint.data(),
              std::min(fingerprint.size(), kFingerprintBytes));
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

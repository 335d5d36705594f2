#include "gguf/model_file.h"

#include <algorithm>

#include "gguf/value_types.h"

namespace remoe {

const Tensor* ModelFile::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

std::optional<uint64_t> ModelFile::Unsigned(const std::string& key) const {
  const auto found = keys_.find(key);
  if (found == keys_.end() || found->second.is_array) return std::nullopt;
  return DecodeUnsigned(found->second.type, key_bytes_.data() + found->second.value);
}

std::optional<std::string> ModelFile::String(const std::string& key) const {
  const auto found = keys_.find(key);
  if (found == keys_.end() || found->second.is_array || found->second.type != kString)
    return std::nullopt;
  const uint64_t length = Load<uint64_t>(key_bytes_.data() + found->second.value);
  return key_bytes_.substr(found->second.value + sizeof(length), length);
}

std::optional<std::vector<uint64_t>> ModelFile::UnsignedArray(const std::string& key) const {
  const auto found = keys_.find(key);
  if (found == keys_.end() || !found->second.is_array) return std::nullopt;
  const KeyPlace& place = found->second;
  const uint64_t width = ScalarBytes(place.type);
  std::vector<uint64_t> values;
  for (uint64_t i = 0; i < place.n_elements; ++i) {
    const auto value = DecodeUnsigned(place.type, key_bytes_.data() + place.value + i * width);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return values;
}

std::optional<double> ModelFile::Number(const std::string& key) const {
  const KeyPlace* place = FindKey(key);
  if (place == nullptr || place->is_array) return std::nullopt;
  const char* bytes = key_bytes_.data() + place->value;
  if (place->type == kF32) return static_cast<double>(Load<float>(bytes));
  if (place->type == kF64) return Load<double>(bytes);
  const auto value = DecodeInteger(place->type, bytes);
  if (!value) return std::nullopt;
  return static_cast<double>(*value);
}

std::optional<std::vector<int64_t>> ModelFile::IntegerArray(const std::string& key) const {
  const KeyPlace* place = FindKey(key);
  if (place == nullptr || !place->is_array) return std::nullopt;
  const uint64_t width = ScalarBytes(place->type);
  std::vector<int64_t> values;
  for (uint64_t i = 0; i < place->n_elements; ++i) {
    const auto value = DecodeInteger(place->type, key_bytes_.data() + place->value + i * width);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return values;
}

std::optional<std::vector<std::string>> ModelFile::StringArray(const std::string& key) const {
  const KeyPlace* place = FindKey(key);
  if (place == nullptr || !place->is_array || place->type != kString) return std::nullopt;
  std::vector<std::string> values;
  values.reserve(place->n_elements);
  const char* bytes = key_bytes_.data() + place->value;
  for (uint64_t i = 0; i < place->n_elements; ++i) {
    const uint64_t length = Load<uint64_t>(bytes);
    bytes += sizeof(length);
    values.emplace_back(bytes, length);
    bytes += length;
  }
  return values;
}

const KeyPlace* ModelFile::FindKey(const std::string& key) const {
  const auto found = keys_.find(key);
  return found == keys_.end() ? nullptr : &found->second;
}

std::string ModelFile::KeyBytesWithout(const std::function<bool(const std::string&)>& drop,
                                       uint64_t* n_keys) const {
  std::vector<KeyPlace> kept;
  for (const auto& [name, place] : keys_) {
    if (!drop(name)) kept.push_back(place);
  }
  std::sort(kept.begin(), kept.end(),
            [](const KeyPlace& a, const KeyPlace& b) { return a.begin < b.begin; });
  std::string bytes;
  bytes.reserve(key_bytes_.size());
  for (const KeyPlace& place : kept) bytes.append(key_bytes_, place.begin, place.end - place.begin);
  *n_keys = kept.size();
  return bytes;
}

std::vector<std::string> ModelFile::KeyNames() const {
  std::vector<std::string> names;
  for (const auto& entry : keys_) names.push_back(entry.first);
  return names;
}

std::string ModelFile::architecture() const {
  return String("general.architecture").value_or("");
}

int ModelFile::n_experts_used() const {
  const std::string key = architecture() + ".expert_used_count";
  uint64_t most = Unsigned(key).value_or(0);
  for (uint64_t layer : UnsignedArray(key).value_or(std::vector<uint64_t>()))
    most = std::max(most, layer);
  return static_cast<int>(std::min<uint64_t>(most, INT32_MAX));
}

}  // namespace remoe

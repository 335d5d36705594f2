// ModelFile: what a GGUF, or a set of split shards, says of itself, checked before anyone relies on
// it.
//
// Open() parses header, keys and tensor infos of every shard and refuses, as kCorrupt naming the
// shard and the field, whatever contradicts the file: counts, strings, arrays or tensors beyond its
// end, sizes that overflow, unknown types, offsets out of alignment, overlapping tensors, duplicate
// names, shards missing or of another model. It allocates no more than a small multiple of the
// header's own bytes, however large the counts in it claim to be. Tensor data is not read.
//
// Immutable once opened; safe to share between threads.
#ifndef REMOE_GGUF_MODEL_FILE_H_
#define REMOE_GGUF_MODEL_FILE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

struct Tensor {
  std::string name;
  uint32_t type = 0;  // ggml type number
  uint32_t n_dims = 0;
  uint64_t ne[4] = {1, 1, 1, 1};
  int shard = 0;        // index into paths()
  uint64_t offset = 0;  // absolute, in the shard's file
  uint64_t n_bytes = 0;
};

// Where a key lies in the key section, and of what kind its value is. Values are decoded on demand,
// so that a tokenizer's arrays cost nothing beyond the bytes of the section itself.
struct KeyPlace {
  uint32_t type = 0;  // GGUF value type; of the elements, when is_array
  bool is_array = false;
  uint64_t n_elements = 1;
  size_t begin = 0;  // of the whole entry, name included
  size_t value = 0;  // of the scalar, the string's length, or the first element
  size_t end = 0;
};

enum class Matrix : uint8_t { kUp, kGate, kDown, kGateUp };
const char* MatrixName(Matrix matrix);  // "up", "gate", "down", "gate_up"
// Which of them the tensor of that name is; nullopt for every other tensor.
std::optional<Matrix> ExpertMatrixOf(const std::string& tensor_name);

// One of the matrices of a layer's experts: n_experts consecutive spans of expert_bytes each.
struct ExpertMatrix {
  Matrix matrix = Matrix::kUp;
  size_t tensor = 0;  // index into tensors()
  int shard = 0;
  uint64_t offset = 0;        // of expert 0, absolute
  uint64_t expert_bytes = 0;  // expert e lies at offset + e * expert_bytes
};

struct ExpertLayer {
  int block = 0;  // N of blk.N
  int n_experts = 0;
  std::vector<ExpertMatrix>
      matrices;                   // 2 or 3 of them, in the order up, gate, down or gate_up, down
  uint64_t expert_bytes() const;  // of one expert, all matrices
};

class ModelFile {
 public:
  // `path`: a single GGUF or the first shard of NAME-00001-of-0000N.gguf; the others are found by
  // name. Where they were stored under other names, they are looked for among `others` by what they
  // say of themselves.
  static Result<ModelFile> Open(const std::string& path,
                                const std::vector<std::string>& others = {});

  const std::vector<std::string>& paths() const { return paths_; }
  const std::vector<uint64_t>& file_bytes() const { return file_bytes_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // of all shards, in file order
  const Tensor* Find(const std::string& name) const;

  // Keys of the first shard. nullopt when absent or of another kind.
  std::optional<uint64_t> Unsigned(
      const std::string& key) const;  // any integer or bool scalar >= 0
  std::optional<std::string> String(const std::string& key) const;
  std::optional<std::vector<uint64_t>> UnsignedArray(const std::string& key) const;
  std::optional<double> Number(const std::string& key) const;  // any scalar that is a number
  std::optional<std::vector<int64_t>> IntegerArray(const std::string& key) const;
  std::optional<std::vector<std::string>> StringArray(const std::string& key) const;
  // Where a value lies and of what kind it is; null when absent.
  const KeyPlace* FindKey(const std::string& key) const;
  // The key section of the first shard as it stands in the file, for re-writing a header.
  uint64_t n_keys() const { return n_keys_; }
  const std::string& key_bytes() const { return key_bytes_; }
  // The same without the keys that `drop` says; sets *n_keys to how many remain.
  std::string KeyBytesWithout(const std::function<bool(const std::string& name)>& drop,
                              uint64_t* n_keys) const;
  std::vector<std::string> KeyNames() const;  // sorted
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }

  std::string architecture() const;  // general.architecture, "" if absent
  int n_experts_used()
      const;  // <arch>.expert_used_count (the largest, where it is per layer), 0 if absent

  // The layers whose experts can be streamed, by block number; empty for a dense model. Fails with
  // kNotSupported naming the tensor when a layer's expert matrices are there but do not fit
  // together (one of them missing, experts counted differently, old models with one tensor per
  // expert).
  Result<std::vector<ExpertLayer>> ExpertLayers() const;

  uint64_t expert_bytes() const;  // sum over all expert matrices

  // Whether the experts' weights are in the file. One made by `remoe-edge convert dense` has holes in
  // their place, and the key remoe.expert_sums: Checksum64 of each expert's part of each of these
  // tensors, in the order of tensors().
  bool has_experts() const { return expert_sums_.empty(); }
  // REQUIRES: !has_experts().
  uint64_t ExpertSum(const ExpertMatrix& matrix, int expert) const;
  uint64_t dense_bytes() const;  // all other tensors

 private:
  Status ReadExpertSums();
  std::vector<std::string> paths_;
  std::vector<uint64_t> file_bytes_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t> by_name_;
  std::string key_bytes_;
  uint64_t n_keys_ = 0;
  uint32_t version_ = 3;
  uint64_t alignment_ = 32;
  std::map<std::string, KeyPlace> keys_;
  std::vector<uint64_t> expert_sums_;
  std::map<size_t, size_t> first_sum_;  // by tensor
  friend class ModelFileParser;
};

}  // namespace remoe

#endif  // REMOE_GGUF_MODEL_FILE_H_

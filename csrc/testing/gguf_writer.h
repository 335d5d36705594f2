// GgufWriter: the bytes of a small GGUF, for tests, with every field open to being made wrong.
//
// Values are appended as they come; counts are filled in by Bytes() unless set. Tensor data tells
// which tensor and where in it, so that a wrong range shows. TemporaryFolder holds the
// files of a test.
//
// Plain value types that own what they hold; one thread at a time.
#ifndef REMOE_TESTING_GGUF_WRITER_H_
#define REMOE_TESTING_GGUF_WRITER_H_

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace remoe::testing {

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;
  std::optional<uint64_t> n_tensors;  // what the header claims, when not the truth
  std::optional<uint64_t> n_keys;

  template <typename T>
  static std::string Raw(T value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static std::string Str(const std::string& text) { return Raw<uint64_t>(text.size()) + text; }

  void Key(const std::string& name, uint32_t type, const std::string& value) {
    keys_ += Str(name) + Raw(type) + value;
    ++key_count_;
  }
  void U32(const std::string& name, uint32_t value) { Key(name, 4, Raw(value)); }
  void U16(const std::string& name, uint16_t value) { Key(name, 2, Raw(value)); }
  void String(const std::string& name, const std::string& value) { Key(name, 8, Str(value)); }

  // Tensor data: bytes that tell which tensor and where, so that a wrong range shows.
  void Add(const std::string& name, uint32_t type, const std::vector<uint64_t>& shape,
           uint64_t n_bytes) {
    AddAt(name, type, shape, n_bytes, data_.size());
    const size_t begin = data_.size();
    data_.resize((begin + n_bytes + alignment - 1) / alignment * alignment);
    for (size_t i = 0; i < n_bytes; ++i)
      data_[begin + i] = static_cast<char>(i * 7 + begin / alignment + seed);
  }
  // Info only, at an offset of the caller's choice.
  void AddAt(const std::string& name, uint32_t type, const std::vector<uint64_t>& shape,
             uint64_t n_bytes, uint64_t offset) {
    infos_ += Str(name) + Raw<uint32_t>(static_cast<uint32_t>(shape.size()));
    for (uint64_t extent : shape) infos_ += Raw(extent);
    infos_ += Raw(type) + Raw(offset);
    ++tensor_count_;
  }

  std::string Bytes() const {
    std::string bytes = "GGUF" + Raw(version) + Raw(n_tensors.value_or(tensor_count_)) +
                        Raw(n_keys.value_or(key_count_)) + keys_ + infos_;
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data_;
  }

  int seed = 0;

 private:
  std::string keys_, infos_, data_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
};

// A directory of its own, removed with the files written into it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    // In memory where there is such a place: disks flush a file that is rewritten over and over.
    std::string name = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    name += "/remoe_test_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    for (const std::string& file : files_) unlink(file.c_str());
    rmdir(path_.c_str());
  }
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = path_ + "/" + name;
    std::FILE* file = std::fopen(path.c_str(), "wb");
    std::fwrite(bytes.data(), 1, bytes.size(), file);
    std::fclose(file);
    files_.insert(path);
    return path;
  }
  const std::string& path() const { return path_; }
  void Adopt(const std::string& path) { files_.insert(path); }  // removed at the end too

 private:
  std::string path_;
  std::set<std::string> files_;
};

}  // namespace remoe::testing

#endif  // REMOE_TESTING_GGUF_WRITER_H_

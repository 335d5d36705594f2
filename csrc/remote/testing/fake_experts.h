// Experts that are two numbers and a sum each: what the tests of both ends of a connection compute with.
//
// Fake is a worker's experts and an engine's own at once; SomeWelcome() is what such a worker says of
// itself; StepRows are a step that asks for experts. Whoever wants a fault overrides a function.
//
// Plain values; Fake may be called from any thread.
#ifndef REMOE_REMOTE_TESTING_FAKE_EXPERTS_H_
#define REMOE_REMOTE_TESTING_FAKE_EXPERTS_H_

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "remote/row_computer.h"
#include "runtime/expert_source.h"
#include "wire/handshake.h"

namespace remoe::testing {

constexpr int kIn = 8, kOut = 6, kLayers = 2, kExperts = 4;

inline std::vector<float> Expected(int expert, int n_rows, const float* rows) {
  std::vector<float> out(static_cast<size_t>(n_rows) * kOut);
  for (int r = 0; r < n_rows; r++) {
    for (int i = 0; i < kOut; i++) out[r * kOut + i] = 2 * rows[r * kIn + i] + expert;
  }
  return out;
}

// Two numbers and a sum stand for an expert.
class Fake : public RowComputer, public HeldExperts {
 public:
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    if (layer < 0 || layer >= kLayers || recipe != "how")
      return Status(Code::kCorrupt, "no recipe");
    return Learned{layer, "kind", kIn, kOut};
  }
  Status Compute(int, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    *out = Expected(expert, n_rows, rows);
    return Status::Ok();
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    ExpertSums sums;
    sums.whole = 1000 + layer * 10 + expert;
    return sums;
  }
  Status CopyWeights(int, uint16_t, int, uint64_t begin, size_t n, uint8_t* dest) override {
    for (size_t i = 0; i < n; i++) dest[i] = static_cast<uint8_t>(begin + i);
    return Status::Ok();
  }
  uint64_t MatrixBytes(int layer, int matrix) const override {
    return layer >= 0 && layer < kLayers && matrix == 0 ? 3000 : 0;
  }
  std::string Name(int, int) const override { return "an expert"; }
  Status Hold(int, uint16_t) override { return Status::Ok(); }
  void Drop(int, uint16_t) override {}
  bool Exists(uint32_t layer, uint32_t expert) const override {
    return layer < kLayers && expert < kExperts;
  }
  uint64_t ExpertBytes(int) const override { return 3000; }
};

inline Welcome SomeWelcome() {
  Welcome welcome;
  welcome.identity.engine = "fuzz";
  welcome.credits = 16;
  welcome.max_rows = 16;
  welcome.capacity = 4;
  welcome.sends_weights = true;
  for (uint32_t e = 0; e < 2; e++) welcome.experts.push_back({0, e, 1000 + e});
  return welcome;
}

// The rows of one step.
class StepRows : public ExpertRows {
 public:
  explicit StepRows(std::vector<float> rows)
      : n_rows_(static_cast<int>(rows.size()) / kIn), rows_(std::move(rows)) {}
  int n_rows(uint16_t) const override { return n_rows_; }
  int64_t n_in() const override { return kIn; }
  int64_t n_out() const override { return kOut; }
  void Gather(uint16_t, float* rows) const override {
    std::memcpy(rows, rows_.data(), rows_.size() * sizeof(float));
  }
  void Describe(std::string* recipe) const override { *recipe += "how"; }
  std::vector<float> expected(int expert) const { return Expected(expert, n_rows_, rows_.data()); }

 private:
  const int n_rows_;
  std::vector<float> rows_;
};

}  // namespace remoe::testing

#endif  // REMOE_REMOTE_TESTING_FAKE_EXPERTS_H_

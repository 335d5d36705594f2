// Dial: which of a token's experts are swapped for residents or skipped, where fewer reads are worth
// some loss of quality.
//
// Three means, each off at 0. A token's strongest expert always stays. What is decided follows from the
// router's numbers and from what is resident, never from the clock; `skip_small` alone does not look
// at residents either. Arithmetic only: knows no graph, and makes no weights.
//
// Choose() by the thread that runs steps; counts from any.
#ifndef REMOE_DEVICE_COMPUTE_DIAL_H_
#define REMOE_DEVICE_COMPUTE_DIAL_H_

#include <atomic>
#include <cstdint>
#include <vector>

namespace remoe {

struct DialSettings {
  // A missing expert is swapped for the best resident that was not chosen, if that one's weight
  // would be at least 1 - swap_near times its own.
  float swap_near = 0;
  float skip_cold = 0;   // missing experts with less than that share of the weights are skipped
  float skip_small = 0;  // all experts with less than that share are
  bool on() const { return swap_near > 0 || skip_cold > 0 || skip_small > 0; }
  bool by_residents() const { return swap_near > 0 || skip_cold > 0; }
  // Each is in [0, 1).
  bool valid() const;
};

class Dial {
 public:
  // What a router said of one token.
  struct Said {
    const float* scores =
        nullptr;  // [n_experts] that it chose by; minus infinity: not to be chosen
    const float* values = nullptr;   // [n_experts] that weights are made of
    bool logits = false;             // the values' differences compare, and not their ratios
    const float* weights = nullptr;  // [k] of the chosen
  };

  explicit Dial(const DialSettings& settings) : settings_(settings) {}
  const DialSettings& settings() const { return settings_; }

  // Decides on one token's k chosen experts. `present`: by expert, whether it need not be read.
  // Swapped ones have other ids afterwards; skipped ones are marked, and their ids are that of the
  // token's strongest. RETURNS: whether anything is as it was not.
  bool Choose(const Said& said, const std::vector<uint8_t>& present, int k, int32_t* ids,
              uint8_t* skipped);

  // Pairs of token and expert that were looked at, and what became of them.
  std::atomic<uint64_t> weighed{0}, swapped{0}, skipped_cold{0}, skipped_small{0};

 private:
  bool Near(const Said& said, int32_t other, int32_t chosen) const;
  int32_t BestResident(const Said& said, const std::vector<uint8_t>& present, int k,
                       const int32_t* ids) const;

  const DialSettings settings_;
  std::vector<int> order_;  // of the chosen, the weakest first
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_DIAL_H_

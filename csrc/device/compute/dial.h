// Dial: which of a token's experts are swapped for residents, skipped, or taken in a coarser form, where
// fewer reads are worth some loss of quality.
//
// Four means, each off at 0. A token's strongest expert always stays. What is decided follows from the
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
  // Missing experts with less than that share are read in the coarse form, and residents in that form
  // will do for them.
  float coarse_below = 0;
  bool on() const { return by_residents() || skip_small > 0; }
  bool by_residents() const { return swap_near > 0 || skip_cold > 0 || coarse_below > 0; }
  // Each is in [0, 1).
  bool valid() const;
};

class Dial {
 public:
  // What is in memory of an expert.
  enum Here : uint8_t { kAbsent, kWhole, kCoarse };
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

  // Decides on one token's k chosen experts. `present`: by expert, what is Here. `may_be_coarse`: the
  // coarse form can be computed with. Swapped ones have other ids afterwards; skipped ones are marked,
  // and their ids are that of the token's strongest; those for which the coarse form will do, and is
  // resident or to be read, are marked too. RETURNS: whether ids or weights are as they were not.
  bool Choose(const Said& said, const std::vector<uint8_t>& present, bool may_be_coarse, int k,
              int32_t* ids, uint8_t* skipped, uint8_t* coarse);

  // Pairs of token and expert that were looked at, and what became of them.
  std::atomic<uint64_t> weighed{0}, swapped{0}, skipped_cold{0}, skipped_small{0}, coarse{0};

 private:
  bool Near(const Said& said, int32_t other, int32_t chosen) const;
  // `coarse_too`: residents in the coarse form count.
  static bool IsPresent(uint8_t here, bool coarse_too) {
    return here == kWhole || (here == kCoarse && coarse_too);
  }
  int32_t BestResident(const Said& said, const std::vector<uint8_t>& present, bool coarse_too,
                       int k, const int32_t* ids) const;

  const DialSettings settings_;
  std::vector<int> order_;  // of the chosen, the weakest first
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_DIAL_H_

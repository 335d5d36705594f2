// Governor: whether prefetching pays, judged by what it does to the time of a token.
//
// While decoding it tries both ways in turn, a few steps each, and compares what a step costs
// beyond its reads. The winner stays until the next trial: soon after a win, ever more rarely after
// losses. Once more bytes are wasted than used, prefetching is off at once; for prompts, which
// cannot be tried both ways, the bytes alone decide. It also says how certain a prediction must be
// for the time won to outweigh the delay of a demand read. governor.cc has the rules.
//
// Owned by one planner. Not thread-safe: told and asked by the one thread that runs events.
#ifndef REMOE_PREFETCH_GOVERNOR_H_
#define REMOE_PREFETCH_GOVERNOR_H_

#include <cstdint>
#include <string>

namespace remoe {

enum class PrefetchMode : uint8_t { kOff, kAuto, kOn };

class Governor {
 public:
  static constexpr int kLearnSteps = 8;  // predictions are made and judged, nothing is read
  static constexpr int kBlockSteps = 8;  // of a trial, which has kBlocks of them
  static constexpr int kBlocks = 4;
  static constexpr int kOnSteps = 512;   // until the next trial
  static constexpr int kOffSteps = 512;  // doubled by each loss
  static constexpr int kMostOffSteps = 16384;
  static constexpr int kOffBatches = 16;

  explicit Governor(PrefetchMode mode) : mode_(mode) {}

  // One decode step is over. `misses`: read ahead or not. `n_tokens`: of so many conversations; a
  // trial compares steps of one size, and begins anew where that changes.
  void OnStep(uint64_t wall_ns, uint64_t misses, uint64_t useful_bytes, uint64_t wasted_bytes,
              int n_tokens = 1);
  // One layer of a prompt's batch is over.
  void OnBatch(uint64_t useful_bytes, uint64_t wasted_bytes);
  // Time between the last demand read of one decode event and the next event.
  void OnWindow(uint64_t window_ns);
  // `n_bytes` of demand reads took that long.
  void OnReads(uint64_t n_bytes, uint64_t ns);
  // Bytes of one expert, and of what may be under way in the background when a demand comes.
  void SetSizes(uint64_t expert_bytes, uint64_t in_flight_bytes);

  bool decode_reads() const;     // experts may be read ahead between the layers of a token
  bool decode_predicts() const;  // predictions are wanted, if only to learn how good they are
  bool batch_reads() const;
  // Nothing will be read ahead of tokens for long.
  bool lost() const { return mode_ == PrefetchMode::kAuto && state_ == State::kLost; }
  // In [0.6, 0.95].
  float NeededCertainty() const;

  PrefetchMode mode() const { return mode_; }
  // "off", "on", "learning", "trial", "won", "lost", for stats.
  const char* state() const;
  double gain_ms() const { return gain_ns_ / 1e6; }  // per token, by the last trial
  uint64_t trials() const { return trials_; }
  uint64_t losses() const { return losses_; }

 private:
  enum class State : uint8_t { kLearning, kTrial, kWon, kLost };
  void EnterTrial();
  void Lose();
  void Judge();
  bool WorthTrying() const;
  bool TrialBlockOn() const { return steps_ / kBlockSteps % 2 == 1; }

  const PrefetchMode mode_;
  State state_ = State::kLearning;
  int64_t steps_ = 0;  // in this state
  int n_tokens_ = 1;   // of the last step
  int64_t off_steps_ = kOffSteps;
  // Of the trial's steps: what a step's time less its misses' reading comes to, whatever a read
  // turns out to take.
  struct Side {
    int n = 0;
    double wall = 0, misses = 0;  // sums, as below
    double wall_wall = 0, wall_misses = 0, misses_misses = 0;
    void Add(double wall_ns, double n_misses);
    double Mean(double read_ns) const;
    double Variance(double read_ns) const;  // of the mean
  };
  Side trial_[2];                               // off and on
  double useful_ = 0, wasted_ = 0;              // decode, fading
  double batch_useful_ = 0, batch_wasted_ = 0;  // prompts, fading
  int batches_to_skip_ = 0;
  double window_ns_ = 0, ns_per_byte_ = 0;
  double expert_bytes_ = 0, in_flight_bytes_ = 0;
  double gain_ns_ = 0;
  uint64_t trials_ = 0, losses_ = 0;
};

}  // namespace remoe

#endif  // REMOE_PREFETCH_GOVERNOR_H_

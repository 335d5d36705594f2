#include "prefetch/governor.h"

#include <algorithm>
#include <cmath>

// While decoding, the two ways take turns: off, on, off, on. What a step costs beyond its reads is its
// time minus its misses times the time of one read, so that steps with more misses do not count
// against either side.
//
// Where the device is idle for a small part only of the time that one expert takes to come, there
// is next to nothing to win, and no trial.

namespace remoe {

namespace {

constexpr double kStepFade = 1.0 / 64;
constexpr double kBatchFade = 1.0 / 32;
constexpr double kTimeFade = 1.0 / 32;
constexpr double kLeastWindow = 1.0 / 6;  // of the time that an expert's read takes
constexpr float kLeastCertainty = 0.6f, kMostCertainty = 0.95f;

void Fade(double* average, double value, double share) {
  *average += (value - *average) * (*average == 0 ? 1 : share);
}

}  // namespace

void Governor::SetSizes(uint64_t expert_bytes, uint64_t in_flight_bytes) {
  expert_bytes_ = static_cast<double>(expert_bytes);
  in_flight_bytes_ = static_cast<double>(in_flight_bytes);
}

void Governor::OnWindow(uint64_t window_ns) {
  Fade(&window_ns_, static_cast<double>(window_ns), kTimeFade);
}

void Governor::OnReads(uint64_t n_bytes, uint64_t ns) {
  if (n_bytes == 0) return;
  Fade(&ns_per_byte_, static_cast<double>(ns) / static_cast<double>(n_bytes), kTimeFade);
}

float Governor::NeededCertainty() const {
  const double delay_ns = in_flight_bytes_ * ns_per_byte_;
  const double won_ns = std::min(window_ns_, expert_bytes_ * ns_per_byte_);
  if (won_ns <= 0) return kMostCertainty;
  return std::clamp(static_cast<float>(delay_ns / (won_ns + delay_ns)), kLeastCertainty,
                    kMostCertainty);
}

bool Governor::decode_reads() const {
  if (mode_ != PrefetchMode::kAuto) return mode_ == PrefetchMode::kOn;
  return state_ == State::kWon || (state_ == State::kTrial && TrialBlockOn());
}

bool Governor::decode_predicts() const {
  return decode_reads() || (mode_ == PrefetchMode::kAuto && state_ == State::kLearning);
}

bool Governor::batch_reads() const {
  return mode_ == PrefetchMode::kOn || (mode_ == PrefetchMode::kAuto && batches_to_skip_ == 0);
}

const char* Governor::state() const {
  if (mode_ == PrefetchMode::kOff) return "off";
  if (mode_ == PrefetchMode::kOn) return "on";
  switch (state_) {
    case State::kLearning:
      return "learning";
    case State::kTrial:
      return "trial";
    case State::kWon:
      return "won";
    case State::kLost:
      return "lost";
  }
  return "";
}

bool Governor::WorthTrying() const {
  return window_ns_ >= kLeastWindow * expert_bytes_ * ns_per_byte_;
}

void Governor::Side::Add(double wall_ns, double n_misses) {
  n++;
  wall += wall_ns;
  misses += n_misses;
  wall_wall += wall_ns * wall_ns;
  wall_misses += wall_ns * n_misses;
  misses_misses += n_misses * n_misses;
}

double Governor::Side::Mean(double read_ns) const {
  return (wall - read_ns * misses) / n;
}

double Governor::Side::Variance(double read_ns) const {
  const double mean = Mean(read_ns);
  const double squares = wall_wall - 2 * read_ns * wall_misses + read_ns * read_ns * misses_misses;
  return std::max(0.0, squares / n - mean * mean) / (n - 1);
}

void Governor::EnterTrial() {
  state_ = State::kTrial;
  steps_ = 0;
  trial_[0] = trial_[1] = Side();
}

void Governor::Lose() {
  state_ = State::kLost;
  steps_ = 0;
  losses_++;
  useful_ = wasted_ = 0;
}

void Governor::Judge() {
  trials_++;
  // One time of a read for both sides: reads that reading ahead has slowed down are its cost.
  const double read_ns = expert_bytes_ * ns_per_byte_;
  gain_ns_ = trial_[0].Mean(read_ns) - trial_[1].Mean(read_ns);
  // A gain within the noise is none: what a wrong "won" costs is paid for many more tokens.
  const double noise_ns = std::sqrt(trial_[0].Variance(read_ns) + trial_[1].Variance(read_ns));
  if (gain_ns_ > noise_ns) {
    state_ = State::kWon;
    steps_ = 0;
    off_steps_ = kOffSteps;
    return;
  }
  Lose();
}

void Governor::OnStep(uint64_t wall_ns, uint64_t misses, uint64_t useful_bytes,
                      uint64_t wasted_bytes, int n_tokens) {
  if (mode_ != PrefetchMode::kAuto) return;
  const bool same = n_tokens == n_tokens_;
  n_tokens_ = n_tokens;
  if (state_ == State::kTrial && !same) {
    EnterTrial();
    return;
  }
  const bool reads = decode_reads();
  if (state_ == State::kTrial && steps_ % kBlockSteps != 0) {
    // The first step of a block still bears the marks of the one before.
    trial_[reads].Add(static_cast<double>(wall_ns), static_cast<double>(misses));
  }
  useful_ += static_cast<double>(useful_bytes) - kStepFade * useful_;
  wasted_ += static_cast<double>(wasted_bytes) - kStepFade * wasted_;
  steps_++;
  switch (state_) {
    case State::kLearning:
      if (steps_ < kLearnSteps) break;
      if (WorthTrying()) {
        EnterTrial();
      } else {
        Lose();
      }
      break;
    case State::kTrial:
      if (steps_ >= kBlocks * kBlockSteps) Judge();
      break;
    case State::kWon:
      if (wasted_ > useful_ && steps_ >= kBlockSteps) {
        Lose();
      } else if (steps_ >= kOnSteps) {
        EnterTrial();
      }
      break;
    case State::kLost:
      if (steps_ < off_steps_) break;
      off_steps_ = std::min<int64_t>(2 * off_steps_, kMostOffSteps);
      state_ = State::kLearning;
      steps_ = 0;
      break;
  }
}

void Governor::OnBatch(uint64_t useful_bytes, uint64_t wasted_bytes) {
  if (batches_to_skip_ > 0) {
    batches_to_skip_--;
    return;
  }
  batch_useful_ += static_cast<double>(useful_bytes) - kBatchFade * batch_useful_;
  batch_wasted_ += static_cast<double>(wasted_bytes) - kBatchFade * batch_wasted_;
  if (mode_ != PrefetchMode::kAuto || batch_wasted_ <= batch_useful_ / 2) return;
  batches_to_skip_ = kOffBatches;
  batch_useful_ = batch_wasted_ = 0;
}

}  // namespace remoe

// Troubles: when a peer has failed so often lately that the user should hear of it.
//
// A peer that is lost or refused is told of at once, elsewhere. Here are those that stay connected:
// late, busy, or slower than storage. Some late answers are usual, since one of twenty counts as late,
// so every good answer takes one bad off. Each kind is told of once in a minute at most.
//
// One thread at a time.
#ifndef REMOE_REMOTE_TROUBLES_H_
#define REMOE_REMOTE_TROUBLES_H_

#include <array>
#include <chrono>
#include <cstddef>

namespace remoe {

class Troubles {
 public:
  using Clock = std::chrono::steady_clock;
  enum Kind { kLate, kBusy, kSlow };
  static constexpr int kMany = 8;
  static constexpr auto kPause = std::chrono::minutes(1);

  void Good() {
    for (Score& each : scores_) {
      if (each.bad > 0) each.bad--;
    }
  }
  // RETURNS: whether the user should hear of it now.
  bool Bad(Kind kind, Clock::time_point now) {
    Score& score = scores_[kind];
    if (score.bad < kMany) score.bad++;
    if (score.bad < kMany || (score.told && now - score.when < kPause)) return false;
    score.told = true;
    score.when = now;
    return true;
  }

 private:
  struct Score {
    int bad = 0;
    bool told = false;
    Clock::time_point when;
  };
  std::array<Score, 3> scores_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_TROUBLES_H_

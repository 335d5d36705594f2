// ScoresTrial: whether a correction of the policy's scores pays, judged by what is paid: misses.
//
// Two imagined caches see every event that decodes one token, one with victims by the plain scores
// and one with victims by the corrected ones. The correction counts while it has missed less of
// late. What the real cache does in between (prompts, several conversations at once, another size)
// both take over from it. Nothing is allocated after construction. A policy owns one; not
// thread-safe.
#ifndef REMOE_CACHE_SCORES_TRIAL_H_
#define REMOE_CACHE_SCORES_TRIAL_H_

#include "cache/imagined_cache.h"

namespace remoe {

class ScoresTrial {
 public:
  explicit ScoresTrial(const Geometry& geometry);

  // A layer's scores [stride] after an event, by both.
  void Score(int layer, const float* plain, const float* corrected);
  // The event's experts were asked for at once. `real`: the real cache before that.
  void Run(int layer, const uint16_t* experts, int n, const ResidentRanks& real);
  // The real cache did what these have not seen.
  void Interrupt() { interrupted_ = true; }
  void Fill(int n_slots) {
    n_slots_ = n_slots;
    interrupted_ = true;
  }

  bool pays() const { return pays_; }

 private:
  const double fade_;
  ImaginedCache plain_, corrected_;
  int n_slots_ = 0;
  bool interrupted_ = true;
  bool pays_ = false;
  double gained_ = 0;    // misses that the correction saved of late
  double differed_ = 0;  // events of late in which the two missed differently
};

}  // namespace remoe

#endif  // REMOE_CACHE_SCORES_TRIAL_H_

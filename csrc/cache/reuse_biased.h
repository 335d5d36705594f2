// ReuseBiasedPolicy: evicts the resident expert whose layer is least likely to use it again soon.
//
// After an event each expert of its layer gets a score, a logit for being used within the next few
// steps: a weighted sum of the columns in reuse_columns.def by a profile, corrected by OnlineLinks.
//
//   use       now, moving averages at six time scales and their logarithms, events since the last;
//             that times the layer's locality (the share of its experts kept from step to step)
//   links     fitted to traces: how its use follows from the experts just chosen in this layer, from
//             those chosen lately, and from those that the two layers before chose for this token
//   learned   links learned while running: log-lift of its use after the experts just chosen
//   router    probability now and lately, where the event carries it; also of the experts not
//             chosen, since a near miss often comes next
//
// A prompt's step is taken in token by token, its last kRecentTokens, so that it ends as if they had
// been decoded. Of a step that decodes for several conversations no token follows another, so links
// start anew with each. Conversations that take turns have averages and last choices of their own
// (RecentUses); what is learned is everybody's. An expert just read that scores worst is the next victim: that is how admission is
// decided. An event costs one layer's scores and one minimum per layer for a victim, and allocates
// nothing. Not thread-safe: as its cache, called from one thread.
#ifndef REMOE_CACHE_REUSE_BIASED_H_
#define REMOE_CACHE_REUSE_BIASED_H_

#include <memory>
#include <vector>

#include "cache/online_links.h"
#include "cache/policy.h"
#include "cache/profile.h"
#include "cache/recent_use.h"
#include "cache/resident_ranks.h"
#include "cache/scores_trial.h"

namespace remoe {

class ReuseBiasedPolicy : public Policy {
 public:
  static constexpr int kContexts = 5;  // of a profile's links

  // Checks what the constructor requires, and that the tables are of a size that a model could
  // need: kInvalidArgument where they are not. `profile` may be null.
  static Result<std::unique_ptr<ReuseBiasedPolicy>> Make(const Geometry& geometry,
                                                         std::shared_ptr<const Profile> profile);
  // Whether the profile is sound and of this shape; kInvalidArgument or kCorrupt where it is not.
  static Status Fits(const Profile& profile, const Geometry& geometry);
  // REQUIRES: CheckGeometry(geometry); profile fits the geometry (Fits()), or is null.
  ReuseBiasedPolicy(const Geometry& geometry, std::shared_ptr<const Profile> profile);

  const char* name() const override { return "reuse-biased"; }
  bool uses_probabilities() const override { return uses_probabilities_; }
  bool Expect(const float* bonus) override;
  bool Scores(std::vector<float>* scores) const override;
  void OnEvent(const Event& event) override;
  void OnHit(ExpertId id) override;
  void OnEvict(ExpertId id) override;
  // Weights depend on the share of the experts that fit; what was learnt of the routing stays.
  void OnResize(int n_slots) override;
  bool LeastFirst(int layer, uint16_t* experts, int n) override;
  void OnEventEnd(const Event& event) override;
  ExpertId Victim(const EvictableList& evictable) override;

  // Column `feature` of the layer scored last, [n_experts]; for fitting.
  const float* FeatureColumn(int feature) const { return &columns_[Row(feature)]; }
  // What the columns of the layer scored last sum up to, [n_experts], without links learned on line.
  const float* Scores() const { return score_.data(); }
  // What it ranks the experts of that layer by.
  const float* Corrected() const { return ranked_.data(); }

 private:
  static constexpr int kScales = 6;
  static constexpr uint64_t kMostTableBytes = uint64_t{1} << 30;
  // Experts up to a multiple of 16, so that rows vectorise whole.
  static size_t Stride(const Geometry& geometry) {
    return ResidentRanks::Stride(geometry.n_experts);
  }

  // What one token took in one layer, or, where that is not known, all tokens of a step together.
  struct Choice {
    int layer = 0;
    int64_t step = 0;
    const uint16_t* experts = nullptr;
    int n = 0;
    const float* probs = nullptr;  // [n_experts] or null
    bool one_token = true;
    bool last = true;  // of its step
  };

  size_t Row(size_t row) const { return row * stride_; }
  size_t LayerRow(int layer, int rows, int row) const {
    return (static_cast<size_t>(layer) * rows + row) * stride_;
  }
  void TakeIn(const Choice& choice);
  void ScoreUse(const Choice& choice);
  // The experts that links of this context start from; RETURNS how many.
  int LinkSources(const Choice& choice, int context, const uint16_t** experts) const;
  const int8_t* LinkTable(int layer, int context) const {
    const size_t n = static_cast<size_t>(geometry_.n_experts);
    return &profile_->links[(static_cast<size_t>(layer) * kContexts + context) * n * n];
  }
  void FetchLinks(const Choice& choice) const;
  void ScoreLinks(const Choice& choice);
  void ScoreLearned(const Choice& choice);
  void ScoreProbs(const Choice& choice);
  void Learn(const Choice& choice);
  void SumColumns();
  void Rank(const Event& event);

  const Geometry geometry_;
  const std::shared_ptr<const Profile> profile_;
  std::vector<int> live_;  // features whose weight is not 0
  std::vector<float> live_weights_;
  bool uses_probabilities_ = false;
  const size_t stride_;

  RecentUses recent_;  // of each conversation
  // State by layer, rows of stride_, of all conversations.
  std::vector<float> follows_;   // [layer][from] counts: `to` used one step after `from`
  std::vector<float> uses_;      // [layer] counts
  std::vector<float> locality_;  // [layer], one number
  std::vector<float> events_;    // [layer], one number

  OnlineLinks online_;
  int conversation_ = kNoConversation;

  std::vector<float> expected_;  // [layer] what Expect() was given, or zeros
  bool expecting_ = false;

  std::vector<float> columns_;  // [features] of the layer scored last
  std::vector<float> score_;    // one row: the columns' sum
  std::vector<float> ranked_;   // one row: with what is learned and expected beyond
  std::vector<float> use_;      // one row: 1 where used by the event
  std::vector<int16_t> sums_;   // one row

  ResidentRanks ranks_;
  ScoresTrial trial_;  // of what online_ adds
};

}  // namespace remoe

#endif  // REMOE_CACHE_REUSE_BIASED_H_

#include "cache/reuse_biased.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "base/prob8.h"
#include "cache/reuse_columns.h"
#include "cache/reuse_rows.h"

namespace remoe {

namespace {

enum Feature {
#define REMOE_COLUMN(identifier, name, small, middle, large, meaning) identifier,
#include "cache/reuse_columns.def"
  kFeatures
};
static_assert(kFeatures == kReuseColumnCount, "one list");
static_assert(kLinkBefore2 - kLinkNow + 1 == ReuseBiasedPolicy::kContexts, "a column for each");

constexpr float kFade[6] = {0.5f, 0.75f, 0.9f, 0.97f, 0.99f, 0.998f};  // of kUse0 ... kUse5
static_assert(kLogUse0 == kUse0 + 6 && kLogIdle == kLogUse0 + 6, "a column for each");
constexpr float kFastFade = 0.75f, kSlowFade = 0.97f;
constexpr float kLocalityFade = 0.95f;
constexpr float kPriorUse = 1.0f / 16, kPriorIdle = 16;
constexpr float kSmallUse = 1e-4f;  // keeps logarithms finite
constexpr float kSmallProb = 1.0f / 16384;
constexpr int kRowsInSum = 256;  // of bytes, before a 16-bit sum could overflow

}  // namespace

Result<std::unique_ptr<ReuseBiasedPolicy>> ReuseBiasedPolicy::Make(
    const Geometry& geometry, std::shared_ptr<const Profile> profile) {
  REMOE_RETURN_IF_ERROR(CheckGeometry(geometry));
  if (profile != nullptr) REMOE_RETURN_IF_ERROR(Fits(*profile, geometry));
  // The largest table by far: what follows what. The numbers may come from a file that anybody wrote.
  const uint64_t table = uint64_t{sizeof(float)} * geometry.total() * Stride(geometry);
  if (table > kMostTableBytes) {
    return Status(Code::kInvalidArgument,
                  Format("reuse-biased would keep %llu MiB of links for %d layers of %d experts: "
                         "take another policy",
                         static_cast<unsigned long long>(table >> 20), geometry.n_layers,
                         geometry.n_experts));
  }
  return std::make_unique<ReuseBiasedPolicy>(geometry, std::move(profile));
}

Status ReuseBiasedPolicy::Fits(const Profile& profile, const Geometry& geometry) {
  const Status sound = profile.Check();
  if (!sound.ok()) return Status(sound.code(), "the profile " + sound.message());
  if (!profile.shares.empty() && profile.n_weights != kFeatures) {
    return Status(
        Code::kInvalidArgument,
        Format("the profile has %d weights and this program's policy %d: fit it again with "
               "`remoe-edge profile`",
               profile.n_weights, kFeatures));
  }
  if (profile.n_contexts != 0 && profile.n_contexts != kContexts) {
    return Status(
        Code::kInvalidArgument,
        Format("the profile has links of %d kinds and this program's policy %d: fit it again with "
               "`remoe-edge profile`",
               profile.n_contexts, kContexts));
  }
  if (profile.n_layers != 0 &&
      (profile.n_layers != geometry.n_layers || profile.n_experts != geometry.n_experts)) {
    return Status(
        Code::kInvalidArgument,
        Format("the profile is of a model with %d layers of %d experts and this one has %d "
               "of %d: fit one to it with `remoe-edge profile`",
               profile.n_layers, profile.n_experts, geometry.n_layers, geometry.n_experts));
  }
  return Status::Ok();
}

ReuseBiasedPolicy::ReuseBiasedPolicy(const Geometry& geometry,
                                     std::shared_ptr<const Profile> profile)
    : geometry_(geometry),
      profile_(profile != nullptr ? std::move(profile)
                                  : std::make_shared<const Profile>(DefaultProfile())),
      stride_(Stride(geometry)),
      online_(geometry.n_layers, geometry.n_experts, stride_),
      ranks_(geometry.n_layers, geometry.n_experts),
      trial_(geometry) {
  ReuseBiasedPolicy::OnResize(geometry.n_slots);
  const size_t layers = static_cast<size_t>(geometry.n_layers), row = stride_;
  recent_.now().averages.assign(layers * kScales * row, kPriorUse);
  recent_.now().idle.assign(layers * row, kPriorIdle);
  recent_.now().link_averages.assign(layers * 2 * row, 0);
  recent_.now().learned_averages.assign(layers * 2 * row, 0);
  recent_.now().prob_averages.assign(layers * 2 * row, 0);
  follows_.assign(layers * geometry.n_experts * row, 0);
  uses_.assign(layers * row, 0);
  locality_.assign(layers, 0.3f);
  events_.assign(layers, 0);
  recent_.now().chosen.assign(layers * geometry.n_experts, 0);
  recent_.now().n_chosen.assign(layers, 0);
  recent_.now().together.assign(layers, false);
  recent_.now().chosen_step.assign(layers, INT64_MIN);
  expected_.assign(layers * row, 0);
  columns_.assign(kFeatures * row, 0);
  score_.assign(row, 0);
  ranked_.assign(row, 0);
  use_.assign(row, 0);
  sums_.assign(row, 0);
}

void ReuseBiasedPolicy::OnResize(int n_slots) {
  const double share = static_cast<double>(n_slots) / geometry_.total();
  online_.Fill(n_slots);
  trial_.Fill(n_slots);
  const std::vector<float> weights =
      profile_->shares.empty() ? DefaultProfile().WeightsFor(share) : profile_->WeightsFor(share);
  live_.clear();
  live_weights_.clear();
  uses_probabilities_ = false;
  for (int f = 0; f < kFeatures; f++) {
    if (weights[f] == 0) continue;
    live_.push_back(f);
    live_weights_.push_back(weights[f]);
    uses_probabilities_ |= f >= kProb;
  }
}

void ReuseBiasedPolicy::OnEvent(const Event& event) {
  recent_.SwitchTo(event.conversation);
  if (event.conversation != conversation_) online_.BreakAll();
  conversation_ = event.conversation;
  Choice choice;
  choice.layer = event.layer;
  choice.step = event.step;
  const bool by_token = event.ids != nullptr && event.n_tokens > 1;
  // Tokens of several conversations: none follows another.
  const bool together = event.phase == Phase::kDecode && event.n_tokens > 1 && !event.in_sequence;
  if (together || recent_.now().together[event.layer]) {
    recent_.now().n_chosen[event.layer] = 0;
    online_.Break(event.layer);
  }
  recent_.now().together[event.layer] = together;
  const int first = by_token ? std::max(0, event.n_tokens - kRecentTokens) : event.n_tokens - 1;
  for (int token = first; token < event.n_tokens; token++) {
    choice.last = token == event.n_tokens - 1;
    choice.one_token = by_token || event.n_tokens == 1;
    choice.experts =
        by_token ? event.ids + static_cast<size_t>(token) * event.top_k : event.experts;
    choice.n = by_token ? event.top_k : event.n;
    const int row = token - (event.n_tokens - event.n_prob_tokens);
    choice.probs = row < 0 ? nullptr : event.probs + static_cast<size_t>(row) * geometry_.n_experts;
    TakeIn(choice);
    if (together && !choice.last) {
      recent_.now().n_chosen[event.layer] = 0;
      online_.Break(event.layer);
    }
  }
  Rank(event);
}

void ReuseBiasedPolicy::TakeIn(const Choice& choice) {
  std::fill(use_.begin(), use_.end(), 0.0f);
  for (int i = 0; i < choice.n; i++) use_[choice.experts[i]] = 1;
  FetchLinks(choice);
  ScoreUse(choice);
  ScoreLinks(choice);
  ScoreLearned(choice);
  ScoreProbs(choice);
  SumColumns();
  if (choice.one_token && choice.n > 0) {
    online_.Follow(choice.layer, choice.experts, choice.n, use_.data(), score_.data());
  } else {
    online_.Break(choice.layer);
  }

  std::copy(choice.experts, choice.experts + choice.n,
            recent_.now().chosen.begin() + static_cast<size_t>(choice.layer) * geometry_.n_experts);
  // Many tokens together do not say what follows from what.
  recent_.now().n_chosen[choice.layer] = choice.one_token ? choice.n : 0;
  recent_.now().chosen_step[choice.layer] = choice.step;
}

void ReuseBiasedPolicy::ScoreUse(const Choice& choice) {
  const int layer = choice.layer;
  std::copy(use_.begin(), use_.end(), columns_.begin() + Row(kUsed));
  for (int scale = 0; scale < kScales; scale++) {
    float* average = &recent_.now().averages[LayerRow(layer, kScales, scale)];
    rows::Fade(average, kFade[scale], use_.data(), stride_);
    std::copy(average, average + stride_, columns_.begin() + Row(kUse0 + scale));
    rows::Logs(average, kSmallUse, &columns_[Row(kLogUse0 + scale)], stride_);
  }
  float* log_idle = &columns_[Row(kLogIdle)];
  rows::Idle(use_.data(), &recent_.now().idle[Row(layer)], log_idle, stride_);

  const uint16_t* before = &recent_.now().chosen[static_cast<size_t>(layer) * geometry_.n_experts];
  float kept = 0;
  for (int i = 0; i < recent_.now().n_chosen[layer]; i++) kept += use_[before[i]];
  if (choice.n > 0 && recent_.now().n_chosen[layer] > 0) {
    kept /= static_cast<float>(choice.n);
    locality_[layer] = locality_[layer] * kLocalityFade + (1 - kLocalityFade) * kept;
  }
  float* local = &columns_[Row(kLocality)];
  std::fill(local, local + stride_, 0.0f);
  rows::AddScaled(log_idle, locality_[layer], local, stride_);
}

int ReuseBiasedPolicy::LinkSources(const Choice& choice, int context,
                                   const uint16_t** experts) const {
  *experts = choice.experts;
  if (context < 3) return choice.n;
  const int source = choice.layer - (context - 2);
  // Of a step's tokens before its last, the layers before keep nothing.
  if (!choice.last || source < 0 || recent_.now().chosen_step[source] != choice.step) return 0;
  *experts = &recent_.now().chosen[static_cast<size_t>(source) * geometry_.n_experts];
  return recent_.now().n_chosen[source];
}

// Rows of links lie all over megabytes: they are on their way from memory while use is scored.
void ReuseBiasedPolicy::FetchLinks(const Choice& choice) const {
  const size_t n_experts = static_cast<size_t>(geometry_.n_experts);
  for (int context = 0; context < profile_->n_contexts; context++) {
    const uint16_t* from;
    const int n = LinkSources(choice, context, &from);
    const int8_t* table = LinkTable(choice.layer, context);
    for (int i = 0; i < n; i++) {
      const int8_t* row = table + from[i] * n_experts;
      for (size_t byte = 0; byte < n_experts; byte += 64) __builtin_prefetch(row + byte);
    }
  }
}

void ReuseBiasedPolicy::ScoreLinks(const Choice& choice) {
  if (profile_->n_contexts == 0) return;
  const int layer = choice.layer;
  const size_t n_experts = static_cast<size_t>(geometry_.n_experts);
  for (int context = 0; context < kContexts; context++) {
    float* column = &columns_[Row(kLinkNow + context)];
    std::fill(column, column + stride_, 0.0f);
    const uint16_t* from;
    const int n = LinkSources(choice, context, &from);
    if (n == 0) continue;
    const int8_t* table = LinkTable(layer, context);
    const float scale =
        profile_->scales[static_cast<size_t>(layer) * kContexts + context] / static_cast<float>(n);
    for (int begin = 0; begin < n; begin += kRowsInSum) {
      std::fill(sums_.begin(), sums_.end(), static_cast<int16_t>(0));
      const int end = std::min(n, begin + kRowsInSum);
      int i = begin;
      for (; i + 4 <= end; i += 4) {
        rows::AddFourRows(table + from[i] * n_experts, table + from[i + 1] * n_experts,
                          table + from[i + 2] * n_experts, table + from[i + 3] * n_experts,
                          sums_.data(), n_experts);
      }
      for (; i < end; i++) rows::AddRow(table + from[i] * n_experts, sums_.data(), n_experts);
      rows::AddSums(sums_.data(), scale, column, n_experts);
    }
    if (context == 1 || context == 2) {
      float* average = &recent_.now().link_averages[LayerRow(layer, 2, context - 1)];
      rows::Fade(average, context == 1 ? kFastFade : kSlowFade, column, stride_);
      std::copy(average, average + stride_, column);
    }
  }
}

void ReuseBiasedPolicy::Learn(const Choice& choice) {
  const int layer = choice.layer;
  const uint16_t* before = &recent_.now().chosen[static_cast<size_t>(layer) * geometry_.n_experts];
  for (int i = 0; i < recent_.now().n_chosen[layer]; i++) {
    float* follows = &follows_[LayerRow(layer, geometry_.n_experts, before[i])];
    for (int k = 0; k < choice.n; k++) follows[choice.experts[k]] += 1;
  }
  float* uses = &uses_[Row(layer)];
  for (int k = 0; k < choice.n; k++) uses[choice.experts[k]] += 1;
  events_[layer] += 1;
}

void ReuseBiasedPolicy::ScoreLearned(const Choice& choice) {
  const int layer = choice.layer;
  float* now = &columns_[Row(kLearnedNow)];
  std::fill(now, now + stride_, 0.0f);
  if (choice.n > 0 && choice.one_token) {
    Learn(choice);
    const float* uses = &uses_[Row(layer)];
    float* share = score_.data();  // free until SumColumns()
    const float events = events_[layer];
    for (size_t j = 0; j < stride_; j++) share[j] = (uses[j] + 1) / (events + 16);
    const float* rows[4] = {};
    int n_rows = 0;
    float total = 0;
    for (int i = 0; i < choice.n; i++) {
      const uint16_t from = choice.experts[i];
      total += rows::Log(uses[from] - 1 + rows::kLiftPrior);
      rows[n_rows++] = &follows_[LayerRow(layer, geometry_.n_experts, from)];
      if (n_rows == 4) {
        rows::AddLogOfFour(rows[0], rows[1], rows[2], rows[3], share, now, stride_);
        n_rows = 0;
      }
    }
    for (int i = 0; i < n_rows; i++) rows::AddLogOfOne(rows[i], share, now, stride_);
    float* own = columns_.data() + Row(kLearnedFast);
    rows::Logs(share, 0, own, stride_);
    const float scale = 1 / static_cast<float>(choice.n);
    for (size_t j = 0; j < stride_; j++) now[j] = (now[j] - total) * scale - own[j];
  }
  for (int k = 0; k < 2; k++) {
    float* average = &recent_.now().learned_averages[LayerRow(layer, 2, k)];
    rows::Fade(average, k == 0 ? kFastFade : kSlowFade, now, stride_);
    std::copy(average, average + stride_, columns_.begin() + Row(kLearnedFast + k));
  }
}

void ReuseBiasedPolicy::ScoreProbs(const Choice& choice) {
  float* prob = &columns_[Row(kProb)];
  if (choice.probs == nullptr) {
    std::fill(prob, prob + 4 * stride_, 0.0f);
    return;
  }
  // Through a byte and back, so that a recorded trace replays to the same decisions.
  std::fill(prob, prob + stride_, 0.0f);
  for (int j = 0; j < geometry_.n_experts; j++) prob[j] = FromProb8(ToProb8(choice.probs[j]));
  float* log_prob = &columns_[Row(kLogProb)];
  rows::Logs(prob, kSmallProb, log_prob, stride_);
  for (size_t j = 0; j < stride_; j++) log_prob[j] += 6;  // about zero for a middling expert
  for (int k = 0; k < 2; k++) {
    float* average = &recent_.now().prob_averages[LayerRow(choice.layer, 2, k)];
    rows::Fade(average, k == 0 ? 0.5f : 0.9f, log_prob, stride_);
    std::copy(average, average + stride_, columns_.begin() + Row(kLogProbFast + k));
  }
}

void ReuseBiasedPolicy::SumColumns() {
  std::fill(score_.begin(), score_.end(), 0.0f);
  const size_t live = live_.size();
  for (size_t i = 0; i + 4 <= live; i += 4) {
    rows::AddFourScaled(&columns_[Row(live_[i])], &columns_[Row(live_[i + 1])],
                        &columns_[Row(live_[i + 2])], &columns_[Row(live_[i + 3])],
                        &live_weights_[i], score_.data(), stride_);
  }
  for (size_t i = live / 4 * 4; i < live; i++) {
    rows::AddScaled(&columns_[Row(live_[i])], live_weights_[i], score_.data(), stride_);
  }
}

void ReuseBiasedPolicy::Rank(const Event& event) {
  const int layer = event.layer;
  std::copy(score_.begin(), score_.end(), ranked_.begin());
  if (online_.kept()) {
    online_.AddTo(ranked_.data(), layer,
                  &recent_.now().chosen[static_cast<size_t>(layer) * geometry_.n_experts],
                  recent_.now().n_chosen[layer]);
    trial_.Score(layer, score_.data(), ranked_.data());
    if (event.n_tokens == 1) {
      trial_.Run(layer, event.experts, event.n, ranks_);
    } else {
      trial_.Interrupt();
    }
    if (!trial_.pays()) std::copy(score_.begin(), score_.end(), ranked_.begin());
  }
  if (expecting_) rows::AddScaled(&expected_[Row(layer)], 1, ranked_.data(), stride_);
  ranks_.Score(layer, ranked_.data());
}

void ReuseBiasedPolicy::OnHit(ExpertId id) {
  ranks_.Withdraw(id);
}

void ReuseBiasedPolicy::OnEvict(ExpertId id) {
  OnHit(id);
}

void ReuseBiasedPolicy::OnEventEnd(const Event& event) {
  for (int i = 0; i < event.n; i++) ranks_.Offer(event.layer, event.experts[i]);
}

ExpertId ReuseBiasedPolicy::Victim(const EvictableList& evictable) {
  return ranks_.Least();
}

}  // namespace remoe

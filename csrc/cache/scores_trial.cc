#include "cache/scores_trial.h"

namespace remoe {

namespace {

constexpr double kTokens = 500;  // that it remembers, about
constexpr double kSure = 2;      // as many times the variance of what comes by chance

}  // namespace

ScoresTrial::ScoresTrial(const Geometry& geometry)
    : fade_(1 - 1 / (kTokens * geometry.n_layers)), plain_(geometry), corrected_(geometry) {}

void ScoresTrial::Score(int layer, const float* plain, const float* corrected) {
  plain_.Score(layer, plain);
  corrected_.Score(layer, corrected);
}

void ScoresTrial::Run(int layer, const uint16_t* experts, int n, const ResidentRanks& real) {
  if (n > n_slots_) {
    Interrupt();
    return;
  }
  if (interrupted_) {
    plain_.Copy(real, n_slots_);
    corrected_.Copy(real, n_slots_);
    interrupted_ = false;
  }
  const int saved = plain_.Run(layer, experts, n) - corrected_.Run(layer, experts, n);
  gained_ = gained_ * fade_ + saved;
  differed_ = differed_ * fade_ + (saved != 0 ? 1 : 0);
  pays_ = gained_ > 0 && gained_ * gained_ > differed_ * kSure;
}

}  // namespace remoe

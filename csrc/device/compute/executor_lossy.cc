// How a layer's step does without some of its experts, or with coarser ones.
#include <algorithm>

#include "base/format.h"
#include "device/compute/executor.h"
#include "device/streamed_model.h"

namespace remoe {

ggml_status Executor::RunLossy(ggml_cgraph* graph) {
  const ggml_status status = RunAs<true>(graph);
  pairs_ = own_pairs_.get();
  return status;
}

Status Executor::ChooseAnew(const Job& job) {
  StreamedModel* model = job.model;
  left_out_ = false;
  pairs_ = own_pairs_.get();
  const bool dialled = model->Dialled(job.piece->origin(), step_.n_tokens());
  bool may_be_coarse = dialled;
  REMOE_RETURN_IF_ERROR(PrepareForms(job, &may_be_coarse));
  if (dialled) {
    REMOE_RETURN_IF_ERROR(lossy_.Choose(model, step_, may_be_coarse));
    if (lossy_.changed()) {
      // One token's pairs need not be computed where they are skipped. Elsewhere a skipped pair stands
      // for the token's strongest expert once more, and weighs nothing.
      left_out_ = lossy_.any_skipped() && step_.n_tokens() == 1 && !model->planner().started() &&
                  ByPairs(job) && pairs_->by_rows();
      step_.Reroute(lossy_.ids(), left_out_ ? &lossy_.skipped() : nullptr);
      for (int i = 0; left_out_ && i < step_.k(); i++) {
        if (lossy_.skipped()[i] != 0) pairs_->GiveNothing(0, i);
      }
    }
  }
  SettleForms(job, may_be_coarse);
  return Status::Ok();
}

Status Executor::PrepareForms(const Job& job, bool* may_be_coarse) {
  StreamedModel* model = job.model;
  *may_be_coarse &= model->coarse() != nullptr && step_.n_tokens() == 1;
  if (!*may_be_coarse) return Status::Ok();
  if (mixed_pairs_ == nullptr) mixed_pairs_ = std::make_unique<MixedPairs>(cpu_);
  pairs_ = mixed_pairs_.get();
  const ExpertLayer& layer = model->layers()[job.piece->origin().layer];
  const bool whole = job.piece->products.size() == layer.matrices.size();
  if (whole && ByPairs(job) && pairs_->by_rows()) return Status::Ok();
  return Status(Code::kNotSupported,
                Format("layer %d: llama.cpp's graph for this model is not one that experts in a "
                       "coarser form can be computed in",
                       layer.block));
}

void Executor::SettleForms(const Job& job, bool may_be_coarse) {
  StreamedModel* model = job.model;
  CoarseSource* forms = model->store()->coarse();
  if (forms == nullptr) return;
  coarse_.clear();
  for (int i = 0; may_be_coarse && i < step_.k(); i++) {
    if (lossy_.coarse()[i] != 0) coarse_.push_back(static_cast<uint16_t>(lossy_.ids()[i]));
  }
  const int layer = step_.layer();
  for (const uint16_t expert : step_.experts()) {
    const bool resident = model->store()->cache().SlotOf(layer, expert) != kNoSlot;
    if (!resident || !forms->IsCoarse(layer, expert)) continue;
    if (std::find(coarse_.begin(), coarse_.end(), expert) != coarse_.end()) continue;
    // Better is needed: it leaves, and is read as any other that is missing.
    (void)model->EndEvent();
    model->store()->Drop(layer, expert);
  }
  forms->Wish(coarse_);
}

}  // namespace remoe

// How a layer's step does without some of its experts.
#include "device/compute/executor.h"
#include "device/streamed_model.h"

namespace remoe {

ggml_status Executor::RunLossy(ggml_cgraph* graph) {
  return RunAs<true>(graph);
}

Status Executor::ChooseAnew(const Job& job) {
  StreamedModel* model = job.model;
  left_out_ = false;
  if (!model->Dialled(job.piece->origin(), step_.n_tokens())) return Status::Ok();
  REMOE_RETURN_IF_ERROR(lossy_.Choose(model, step_));
  if (!lossy_.changed()) return Status::Ok();
  // One token's pairs need not be computed where they are skipped. Elsewhere a skipped pair stands for
  // the token's strongest expert once more, and weighs nothing.
  left_out_ = lossy_.any_skipped() && step_.n_tokens() == 1 && !model->planner().started() &&
              ByPairs(job) && pairs_->by_rows();
  step_.Reroute(lossy_.ids(), left_out_ ? &lossy_.skipped() : nullptr);
  for (int i = 0; left_out_ && i < step_.k(); i++) {
    if (lossy_.skipped()[i] != 0) pairs_->GiveNothing(0, i);
  }
  return Status::Ok();
}

}  // namespace remoe

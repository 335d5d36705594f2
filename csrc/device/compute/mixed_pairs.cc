#include "device/compute/mixed_pairs.h"

#include <algorithm>

#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

const ggml_tensor& MixedPairs::Coarse::ViewOf(const TensorOrigin& origin) const {
  return origin.model->coarse()->view(origin);
}

bool MixedPairs::Prepare(ggml_tensor** nodes, int begin, int end) {
  if (!PairRunner::Prepare(nodes, begin, end) || !coarse_.Prepare(nodes, begin, end)) return false;
  for (int i = begin; i < end; i++) {
    origin_ = ExpertProduct(nodes[i]);
    if (origin_ != nullptr) return true;
  }
  return false;
}

ggml_status MixedPairs::RunGroup(const Pair* pairs, int n, Stage stage) {
  const CoarseSource* forms = origin_->model->store()->coarse();
  parted_.assign(pairs, pairs + n);
  const auto coarse = std::stable_partition(parted_.begin(), parted_.end(), [&](const Pair& pair) {
    return !forms->IsCoarse(origin_->layer, static_cast<uint16_t>(pair.expert));
  });
  const int n_own = static_cast<int>(coarse - parted_.begin());
  if (n_own > 0) {
    const ggml_status status = PairRunner::RunGroup(parted_.data(), n_own, stage);
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  return n_own == n ? GGML_STATUS_SUCCESS
                    : coarse_.RunGroup(parted_.data() + n_own, n - n_own, stage);
}

}  // namespace remoe

// MixedPairs: one token's pairs where some experts' copies are coarse: each form's pairs are run by
// a runner that sees the slots as tensors of that form's types.
//
// In all else it is a PairRunner. Used in the lossy path alone, where Executor::ChooseAnew() has found
// that a piece can be run so.
//
// Owned by one executor; one thread.
#ifndef REMOE_DEVICE_COMPUTE_MIXED_PAIRS_H_
#define REMOE_DEVICE_COMPUTE_MIXED_PAIRS_H_

#include <vector>

#include "device/compute/pair_runner.h"

namespace remoe {

class MixedPairs : public PairRunner {
 public:
  explicit MixedPairs(ggml_backend_t backend) : PairRunner(backend), coarse_(backend) {}

  // REQUIRES: the nodes are of a model that has coarse experts.
  bool Prepare(ggml_tensor** nodes, int begin, int end) override;

 protected:
  ggml_status RunGroup(const Pair* pairs, int n, Stage stage) override;

 private:
  class Coarse : public PairRunner {
   public:
    using PairRunner::PairRunner;
    using PairRunner::RunGroup;

   protected:
    const ggml_tensor& ViewOf(const TensorOrigin& origin) const override;
  };
  Coarse coarse_;
  const TensorOrigin* origin_ = nullptr;  // of the piece's first product
  std::vector<Pair> parted_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_MIXED_PAIRS_H_

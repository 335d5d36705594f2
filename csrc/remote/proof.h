// Proof: what all peers of an engine are checked against, and what has been found already.
//
// It holds the recipes of the engine's layers, as its graphs have shown them, and the sums of
// experts in the engine's own files, each computed once. Canary rows are the same for everybody.
//
// Any thread.
#ifndef REMOE_REMOTE_PROOF_H_
#define REMOE_REMOTE_PROOF_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "remote/row_computer.h"
#include "wire/handshake.h"

namespace remoe {

// One, some, and where ggml's tiles begin: all round in their own order.
constexpr int kCanaryRows[] = {1, 7, 8, 9, 64};

struct KnownRecipe {
  int layer = 0;
  std::string bytes;
  RowComputer::Learned learned;
};

class Proof {
 public:
  Proof(Identity identity, std::unique_ptr<RowComputer> computer)
      : identity_(std::move(identity)), computer_(std::move(computer)) {}

  const Identity& identity() const { return identity_; }
  RowComputer* computer() { return computer_.get(); }

  // RETURNS: the number of that recipe, learned now if it is new; -1 where it cannot be computed
  // from a file alone.
  // One thread at a time.
  int Find(int layer, const std::string& bytes);
  int n_recipes() const;
  KnownRecipe recipe(int number) const;
  Result<ExpertSums> Sums(int layer, uint16_t expert);
  // Of a matrix, where Sums() has been asked already; 0 where it was not.
  uint64_t KnownSum(int layer, uint16_t expert, int matrix) const;
  // [n_rows][n_in], made from a seed.
  static std::vector<float> CanaryRows(int n_rows, int64_t n_in);

 private:
  const Identity identity_;
  const std::unique_ptr<RowComputer> computer_;
  mutable std::mutex mutex_;
  std::vector<KnownRecipe> recipes_;
  std::map<int, int> recipe_of_layer_;  // the last one
  std::map<int, std::string> refused_;  // by layer: what cannot be computed
  std::map<std::pair<int, int>, ExpertSums> sums_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_PROOF_H_

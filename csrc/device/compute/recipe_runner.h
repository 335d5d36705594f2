// RecipeRunner: computes single experts' rows by recipes, with the engine's own executor.
//
// A recipe becomes a graph over the model's streamed tensors in which every row is a token with that
// one expert; what runs it is what runs an engine's graph. A worker's model has a slot for each
// expert that it serves. An engine that checks a worker has one slot, and reads into it.
//
// The model has its cache attached, takes no other steps, and outlives this. Any thread; calls take
// turns.
#ifndef REMOE_DEVICE_COMPUTE_RECIPE_RUNNER_H_
#define REMOE_DEVICE_COMPUTE_RECIPE_RUNNER_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/compute/executor.h"
#include "device/compute/ffn_recipe.h"
#include "remote/row_computer.h"
#include "wire/handshake.h"

namespace remoe {

// Who we are, for a handshake. `engine`: version of the program; `fingerprint`: of the model.
Identity IdentityOf(const StreamedModel& model, const std::string& engine,
                    const std::string& fingerprint);
// Biases of the experts of these layers, which a runner keeps beside the slots; all layers for none.
uint64_t ExpertBiasBytes(const ModelFile& file, const std::vector<ExpertLayer>& layers);

class RecipeRunner : public RowComputer, public HeldExperts {
 public:
  RecipeRunner(StreamedModel* model, int n_threads);
  ~RecipeRunner() override;

  Result<Learned> Learn(int layer, const std::string& recipe) override;
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override;
  Result<ExpertSums> Sums(int layer, uint16_t expert) override;
  Status CopyWeights(int layer, uint16_t expert, int matrix, uint64_t begin, size_t n,
                     uint8_t* dest) override;
  uint64_t MatrixBytes(int layer, int matrix) const override;
  std::string Name(int layer, int expert) const override;

  Status Hold(int layer, uint16_t expert) override;
  void Drop(int layer, uint16_t expert) override;
  bool Exists(uint32_t layer, uint32_t expert) const override;
  uint64_t ExpertBytes(int layer) const override;
  // Memory that computing so many rows takes, of any layer.
  static uint64_t ScratchBytes(const StreamedModel& model, int n_rows);

 private:
  struct Known {
    int layer = 0;
    FfnRecipe recipe;
  };
  struct Graph;
  Status LoadBias(const std::string& name);
  std::string KindOf(int layer, const std::string& bytes, const FfnRecipe& recipe) const;
  Graph Build(const Known& known, uint16_t expert, int n_rows, const float* rows);

  StreamedModel* const model_;
  std::mutex mutex_;
  ggml_backend_t cpu_;
  std::unique_ptr<Executor> executor_;
  ggml_context* weights_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::vector<std::vector<ggml_tensor*>> matrices_;   // [layer][matrix]
  std::map<std::string, std::vector<float>> biases_;  // by tensor
  std::vector<Known> known_;
  std::map<std::pair<int, std::string>, int> number_of_;  // by layer and bytes
  std::vector<uint8_t> graph_memory_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_COMPUTE_RECIPE_RUNNER_H_

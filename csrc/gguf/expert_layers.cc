// Which tensors of a model are experts' matrices, by llama.cpp's names. Shared experts (`_shexp`),
// chunk experts (`_chexps`), norms (`ffn_norm_exps`) and per-expert biases and scales are dense:
// small, or used by every token.
#include <algorithm>
#include <cinttypes>

#include "base/format.h"
#include "gguf/model_file.h"

namespace remoe {
namespace {

struct BlockName {
  int block = 0;
  std::string rest;  // after "blk.N."
};

// nullopt unless `name` is "blk." + a number of at most 6 digits, without leading zeros, + "." +
// more.
std::optional<BlockName> ParseBlockName(const std::string& name) {
  if (name.compare(0, 4, "blk.") != 0) return std::nullopt;
  size_t end = 4;
  int block = 0;
  while (end < name.size() && end < 10 && name[end] >= '0' && name[end] <= '9') {
    block = block * 10 + (name[end++] - '0');
  }
  if (end == 4 || end + 1 >= name.size() || name[end] != '.') return std::nullopt;
  if (name[4] == '0' && end > 5) return std::nullopt;
  return BlockName{block, name.substr(end + 1)};
}

std::optional<Matrix> MatrixOfRest(const std::string& rest) {
  if (rest == "ffn_up_exps.weight") return Matrix::kUp;
  if (rest == "ffn_gate_exps.weight") return Matrix::kGate;
  if (rest == "ffn_down_exps.weight") return Matrix::kDown;
  if (rest == "ffn_gate_up_exps.weight") return Matrix::kGateUp;
  return std::nullopt;
}

// One tensor per expert, "ffn_up.7.weight", as written before experts were merged.
bool IsSingleExpert(const std::string& rest) {
  for (const char* stem : {"ffn_up.", "ffn_gate.", "ffn_down."}) {
    const std::string start = stem;
    if (rest.compare(0, start.size(), start) == 0 && rest.size() > start.size() &&
        rest[start.size()] >= '0' && rest[start.size()] <= '9') {
      return true;
    }
  }
  return false;
}

bool IsExpert(const Tensor& tensor) {
  return ExpertMatrixOf(tensor.name).has_value();
}

// Graph order, so that a slot's layout follows the order of use.
int Rank(Matrix matrix) {
  switch (matrix) {
    case Matrix::kGateUp:
      return 0;
    case Matrix::kUp:
      return 1;
    case Matrix::kGate:
      return 2;
    case Matrix::kDown:
      return 3;
  }
  return 4;
}

}  // namespace

std::optional<Matrix> ExpertMatrixOf(const std::string& tensor_name) {
  const auto name = ParseBlockName(tensor_name);
  return name ? MatrixOfRest(name->rest) : std::nullopt;
}

const char* MatrixName(Matrix matrix) {
  switch (matrix) {
    case Matrix::kUp:
      return "up";
    case Matrix::kGate:
      return "gate";
    case Matrix::kDown:
      return "down";
    case Matrix::kGateUp:
      return "gate_up";
  }
  return "?";
}

uint64_t ExpertLayer::expert_bytes() const {
  uint64_t sum = 0;
  for (const ExpertMatrix& matrix : matrices) sum += matrix.expert_bytes;
  return sum;
}

Result<std::vector<ExpertLayer>> ModelFile::ExpertLayers() const {
  const auto refuse = [this](const std::string& problem) {
    return Status(Code::kNotSupported, paths_[0] + ": " + problem);
  };
  std::map<int, ExpertLayer> layers;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& tensor = tensors_[i];
    const auto name = ParseBlockName(tensor.name);
    if (!name) continue;
    if (IsSingleExpert(name->rest)) {
      return refuse(
          "tensor '" + tensor.name +
          "' holds a single expert, an old layout that llama.cpp no longer loads; convert the "
          "model again from its source");
    }
    const auto matrix = MatrixOfRest(name->rest);
    if (!matrix) continue;
    if (tensor.n_dims != 3 || tensor.ne[2] > INT32_MAX) {
      return refuse(Format("tensor '%s' has %" PRIu32 " dimensions, experts' matrices have 3",
                           tensor.name.c_str(), tensor.n_dims));
    }
    ExpertLayer& layer = layers[name->block];
    layer.block = name->block;
    if (layer.n_experts != 0 && layer.n_experts != static_cast<int>(tensor.ne[2])) {
      return refuse(Format("tensor '%s' has %" PRIu64
                           " experts, another matrix of its layer has %d",
                           tensor.name.c_str(), tensor.ne[2], layer.n_experts));
    }
    layer.n_experts = static_cast<int>(tensor.ne[2]);
    layer.matrices.push_back(
        {*matrix, i, tensor.shard, tensor.offset, tensor.n_bytes / tensor.ne[2]});
  }
  std::vector<ExpertLayer> sorted;
  for (auto& [block, layer] : layers) {
    std::sort(layer.matrices.begin(), layer.matrices.end(),
              [](const ExpertMatrix& a, const ExpertMatrix& b) {
                return Rank(a.matrix) < Rank(b.matrix);
              });
    std::string have;
    for (const ExpertMatrix& matrix : layer.matrices)
      have += std::string(have.empty() ? "" : ", ") + MatrixName(matrix.matrix);
    if (have != "up, gate, down" && have != "gate_up, down" && have != "up, down") {
      return refuse(
          Format("tensor '%s': its layer has the expert matrices %s, where up, gate and down, "
                 "gate_up and down, or up and down belong together",
                 tensors_[layer.matrices[0].tensor].name.c_str(), have.c_str()));
    }
    sorted.push_back(std::move(layer));
  }
  return sorted;
}

uint64_t ModelFile::expert_bytes() const {
  uint64_t sum = 0;
  for (const Tensor& tensor : tensors_) sum += IsExpert(tensor) ? tensor.n_bytes : 0;
  return sum;
}

uint64_t ModelFile::dense_bytes() const {
  uint64_t sum = 0;
  for (const Tensor& tensor : tensors_) sum += IsExpert(tensor) ? 0 : tensor.n_bytes;
  return sum;
}

Status ModelFile::ReadExpertSums() {
  static constexpr char kKey[] = "remoe.expert_sums";
  if (FindKey(kKey) == nullptr) return Status::Ok();
  const auto wrong = [this](const char* problem) {
    return Status(Code::kCorrupt, Format("%s: key '%s' %s", paths_[0].c_str(), kKey, problem));
  };
  Result<std::vector<ExpertLayer>> layers = ExpertLayers();
  if (!layers.ok()) return layers.status();
  std::map<size_t, size_t> n_experts;  // by tensor
  for (const ExpertLayer& layer : layers.value()) {
    for (const ExpertMatrix& matrix : layer.matrices) {
      n_experts[matrix.tensor] = static_cast<size_t>(layer.n_experts);
    }
  }
  size_t n = 0;
  for (const auto& [tensor, count] : n_experts) {
    first_sum_[tensor] = n;
    n += count;
  }
  std::optional<std::vector<uint64_t>> sums = UnsignedArray(kKey);
  if (!sums || n == 0 || sums->size() != n)
    return wrong("is not a number for each expert's matrix");
  expert_sums_ = std::move(*sums);
  return Status::Ok();
}

uint64_t ModelFile::ExpertSum(const ExpertMatrix& matrix, int expert) const {
  return expert_sums_[first_sum_.at(matrix.tensor) + static_cast<size_t>(expert)];
}

}  // namespace remoe

#include "device/compute/recipe_runner.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "device/graph/cpu_backend.h"
#include "device/streamed_model.h"
#include "runtime/dense_reader.h"
#include "wire/checksum.h"

namespace remoe {

namespace {

constexpr int kMaxNodes = 64;
constexpr size_t kMostRecipes = 8192;

bool IsExpertBias(const std::string& name, int block) {
  for (const char* matrix : {"up", "gate", "down", "gate_up"}) {
    if (name == Format("blk.%d.ffn_%s_exps.bias", block, matrix)) return true;
  }
  return false;
}

std::string CpuFeatures() {
  const ggml_backend_reg_t reg =
      ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
  const auto get = reinterpret_cast<ggml_backend_get_features_t>(
      ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
  std::string features;
  if (get == nullptr) return features;
  for (const ggml_backend_feature* each = get(reg); each->name != nullptr; each++) {
    features += Format("%s%s=%s", features.empty() ? "" : " ", each->name, each->value);
  }
  return features;
}

std::string Architecture() {
#if defined(__x86_64__)
  return "x86-64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "other";
#endif
}

Status ReadWhole(StreamedModel* model, const Tensor& tensor, uint64_t offset, uint64_t n_bytes,
                 void* dest) {
  Result<std::unique_ptr<DenseReader>> reader = DenseReader::Make(model->reader());
  if (!reader.ok()) return reader.status();
  return reader.value()->ReadAt(tensor.shard, tensor.offset + offset, n_bytes,
                                static_cast<uint8_t*>(dest));
}

}  // namespace

Identity IdentityOf(const StreamedModel& model, const std::string& engine,
                    const std::string& fingerprint) {
  Identity identity;
  identity.engine = engine;
  identity.llama_build = Format("ggml %s (%s)", ggml_version(), ggml_commit());
  identity.architecture = Architecture();
  identity.cpu_features = CpuFeatures();
  identity.model = fingerprint;
  Checksum64 sum;
  for (const ExpertLayer& layer : model.layers()) {
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = model.file().tensors()[matrix.tensor];
      sum.Add(tensor.name.data(), tensor.name.size());
      sum.Add(&tensor.type, sizeof(tensor.type));
      sum.Add(tensor.ne, sizeof(tensor.ne));
    }
  }
  identity.layout = Format("%016llx", static_cast<unsigned long long>(sum.sum()));
  identity.repacked = model.repacked();
  return identity;
}

uint64_t ExpertBiasBytes(const ModelFile& file, const std::vector<ExpertLayer>& layers) {
  uint64_t n_bytes = 0;
  for (const Tensor& tensor : file.tensors()) {
    for (const ExpertLayer& layer : layers) {
      if (IsExpertBias(tensor.name, layer.block)) n_bytes += tensor.n_bytes;
    }
  }
  return n_bytes;
}

RecipeRunner::RecipeRunner(StreamedModel* model, int n_threads)
    : model_(model), cpu_(cpu::NewBackend()) {
  cpu::SetThreads(cpu_, n_threads);
  executor_ = std::make_unique<Executor>(cpu_);
  size_t n = 0;
  for (const ExpertLayer& layer : model->layers()) n += layer.matrices.size();
  weights_ = ggml_init({ggml_tensor_overhead() * (n + 1), nullptr, true});
  for (const ExpertLayer& layer : model->layers()) {
    matrices_.emplace_back();
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = model->file().tensors()[matrix.tensor];
      ggml_tensor* made = ggml_new_tensor_3d(
          weights_, static_cast<ggml_type>(tensor.type), static_cast<int64_t>(tensor.ne[0]),
          static_cast<int64_t>(tensor.ne[1]), static_cast<int64_t>(tensor.ne[2]));
      ggml_set_name(made, tensor.name.c_str());
      matrices_.back().push_back(made);
    }
  }
  buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(weights_, model->buffer_type());
}

RecipeRunner::~RecipeRunner() {
  executor_.reset();
  ggml_backend_buffer_free(buffer_);
  ggml_free(weights_);
  ggml_backend_free(cpu_);
}

Status RecipeRunner::LoadBias(const std::string& name) {
  if (biases_.count(name) > 0) return Status::Ok();
  const Tensor* tensor = model_->file().Find(name);
  std::vector<float> values(tensor->n_bytes / sizeof(float));
  REMOE_RETURN_IF_ERROR(ReadWhole(model_, *tensor, 0, tensor->n_bytes, values.data()));
  biases_[name] = std::move(values);
  return Status::Ok();
}

// Layers that differ in their numbers alone are of one kind.
std::string RecipeRunner::KindOf(int layer, const std::string& bytes,
                                 const FfnRecipe& recipe) const {
  FfnRecipe bare = recipe;
  for (FfnRecipe::Step& step : bare.steps) step.bias = step.bias.empty() ? "" : "bias";
  std::string kind = bare.Bytes();
  for (const ExpertMatrix& matrix : model_->layers()[layer].matrices) {
    const Tensor& tensor = model_->file().tensors()[matrix.tensor];
    kind += Format(" %u %llu %llu", tensor.type, static_cast<unsigned long long>(tensor.ne[0]),
                   static_cast<unsigned long long>(tensor.ne[1]));
  }
  return kind;
}

Result<RowComputer::Learned> RecipeRunner::Learn(int layer, const std::string& bytes) {
  if (layer < 0 || layer >= static_cast<int>(model_->layers().size())) {
    return Status(Code::kCorrupt, Format("there is no layer %d of experts", layer));
  }
  Result<FfnRecipe> recipe = FfnRecipe::Decode(bytes, model_->file(), model_->layers()[layer]);
  if (!recipe.ok()) return recipe.status();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [at, is_new] = number_of_.emplace(std::make_pair(layer, bytes), known_.size());
  if (is_new) {
    Status status = known_.size() < kMostRecipes ? Status::Ok()
                                                 : Status(Code::kOutOfMemory, "too many recipes");
    for (const FfnRecipe::Step& step : recipe.value().steps) {
      if (status.ok() && !step.bias.empty()) status = LoadBias(step.bias);
    }
    if (!status.ok()) {
      number_of_.erase(at);
      return status;
    }
    known_.push_back({layer, recipe.value()});
  }
  Learned learned;
  learned.recipe = at->second;
  learned.kind = KindOf(layer, bytes, recipe.value());
  learned.n_in = recipe.value().n_in;
  learned.n_out = recipe.value().n_out();
  return learned;
}

struct RecipeRunner::Graph {
  ggml_context* context = nullptr;
  ggml_cgraph* graph = nullptr;
  const ggml_tensor* result = nullptr;
};

RecipeRunner::Graph RecipeRunner::Build(const Known& known, uint16_t expert, int n_rows,
                                        const float* rows) {
  const FfnRecipe& recipe = known.recipe;
  constexpr size_t kPadding = 256;
  size_t n_bytes = ggml_graph_overhead_custom(kMaxNodes, false) + (1 << 16);
  const auto more = [&](int64_t ne0) {
    n_bytes += ggml_tensor_overhead() + kPadding + sizeof(float) * ne0 * n_rows;
  };
  more(recipe.n_in);
  more(1);
  for (const FfnRecipe::Step& step : recipe.steps) {
    more(step.ne0);
    more(0);  // a bias
  }
  if (graph_memory_.size() < n_bytes) graph_memory_.resize(n_bytes);

  Graph made;
  made.context = ggml_init({graph_memory_.size(), graph_memory_.data(), false});
  ggml_context* context = made.context;
  ggml_tensor* input = ggml_new_tensor_3d(context, GGML_TYPE_F32, recipe.n_in, 1, n_rows);
  std::memcpy(input->data, rows, ggml_nbytes(input));
  ggml_tensor* ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, 1, n_rows);
  for (int i = 0; i < n_rows; i++) static_cast<int32_t*>(ids->data)[i] = expert;
  std::vector<ggml_tensor*> nodes;
  for (const FfnRecipe::Step& step : recipe.steps) {
    ggml_tensor* node;
    ggml_tensor* first = step.operand[0] >= 0 ? nodes[step.operand[0]] : nullptr;
    ggml_tensor* second = step.operand[1] >= 0 ? nodes[step.operand[1]] : nullptr;
    if (step.matrix >= 0) {
      node = ggml_mul_mat_id(context, matrices_[known.layer][step.matrix],
                             second != nullptr ? second : input, ids);
    } else if (step.op == GGML_OP_VIEW) {
      node = ggml_view_3d(context, first, step.ne0, 1, n_rows, first->nb[1], first->nb[2],
                          step.offset);
    } else if (!step.bias.empty()) {
      std::vector<float>& values = biases_[step.bias];
      ggml_tensor* bias = ggml_new_tensor_2d(context, GGML_TYPE_F32, 0, 0);
      bias->ne[0] = step.ne0;
      bias->ne[1] = static_cast<int64_t>(values.size()) / step.ne0;
      bias->nb[1] = step.ne0 * sizeof(float);
      bias->nb[2] = bias->nb[3] = bias->nb[1] * bias->ne[1];
      bias->data = values.data();
      node = ggml_add_id(context, first, bias, ids);
    } else {
      node = ggml_new_tensor_3d(context, GGML_TYPE_F32, step.ne0, 1, n_rows);
      node->op = step.op;
      node->src[0] = first;
      node->src[1] = second;
    }
    if (step.op != GGML_OP_VIEW) {
      std::memcpy(node->op_params, step.params.data(), step.params.size());
    }
    nodes.push_back(node);
  }
  made.result = nodes.back();
  made.graph = ggml_new_graph_custom(context, kMaxNodes, false);
  ggml_build_forward_expand(made.graph, nodes.back());
  return made;
}

Status RecipeRunner::Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                             std::vector<float>* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Known& known = known_[recipe];
  if (expert >= model_->layers()[known.layer].n_experts) {
    return Status(Code::kCorrupt, Format("there is no expert %d", expert));
  }
  const Graph graph = Build(known, expert, n_rows, rows);
  const ggml_status status = executor_->Run(graph.graph);
  if (status == GGML_STATUS_SUCCESS) {
    const auto* values = static_cast<const float*>(graph.result->data);
    out->assign(values, values + ggml_nelements(graph.result));
  }
  ggml_free(graph.context);
  if (status == GGML_STATUS_SUCCESS) return Status::Ok();
  const Status failure = model_->failure().Take();
  return failure.ok() ? Status(Code::kIo, "computing failed") : failure;
}

std::string RecipeRunner::Name(int layer, int expert) const {
  const bool known = layer >= 0 && layer < static_cast<int>(model_->layers().size());
  return Format("layer %d, expert %d", known ? model_->layers()[layer].block : layer, expert);
}

// Of what is in memory, where it is as the file has it; else of the file; and where that has none, of
// what is written in the file about them.
Result<ExpertSums> RecipeRunner::Sums(int layer, uint16_t expert) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!Exists(static_cast<uint32_t>(layer), expert)) {
    return Status(Code::kCorrupt, Format("there is no expert %d in layer %d", expert, layer));
  }
  const ExpertLayer& its_layer = model_->layers()[layer];
  const SlotId slot = model_->repacked() ? kNoSlot : model_->store()->cache().SlotOf(layer, expert);
  ExpertSums sums;
  std::vector<uint8_t> bytes;
  for (size_t m = 0; m < its_layer.matrices.size(); m++) {
    const ExpertMatrix& matrix = its_layer.matrices[m];
    if (!model_->file().has_experts()) {
      sums.matrices.push_back(model_->file().ExpertSum(matrix, expert));
      continue;
    }
    const uint8_t* at = nullptr;
    if (slot != kNoSlot) {
      at = model_->store()->matrix(slot, layer, static_cast<int>(m));
    } else {
      bytes.resize(matrix.expert_bytes);
      const Tensor& tensor = model_->file().tensors()[matrix.tensor];
      REMOE_RETURN_IF_ERROR(ReadWhole(model_, tensor, expert * matrix.expert_bytes,
                                      matrix.expert_bytes, bytes.data()));
      at = bytes.data();
    }
    Checksum64 sum;
    sum.Add(at, matrix.expert_bytes);
    sums.matrices.push_back(sum.sum());
  }
  Checksum64 whole;
  for (const uint64_t sum : sums.matrices) whole.Add(&sum, sizeof(sum));
  for (const Tensor& tensor : model_->file().tensors()) {
    if (!IsExpertBias(tensor.name, its_layer.block)) continue;
    bytes.resize(tensor.n_bytes / its_layer.n_experts);
    REMOE_RETURN_IF_ERROR(
        ReadWhole(model_, tensor, expert * bytes.size(), bytes.size(), bytes.data()));
    whole.Add(bytes.data(), bytes.size());
  }
  sums.whole = whole.sum();
  return sums;
}

uint64_t RecipeRunner::MatrixBytes(int layer, int matrix) const {
  if (layer < 0 || layer >= static_cast<int>(model_->layers().size())) return 0;
  const ExpertLayer& its_layer = model_->layers()[layer];
  const bool known = matrix >= 0 && matrix < static_cast<int>(its_layer.matrices.size());
  return known ? its_layer.matrices[matrix].expert_bytes : 0;
}

Status RecipeRunner::CopyWeights(int layer, uint16_t expert, int matrix, uint64_t begin, size_t n,
                                 uint8_t* dest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t n_bytes = MatrixBytes(layer, matrix);
  if (!Exists(static_cast<uint32_t>(layer), expert) || begin > n_bytes || n > n_bytes - begin) {
    return Status(Code::kCorrupt, "there are no such weights");
  }
  const SlotId slot = model_->store()->cache().SlotOf(layer, expert);
  if (model_->repacked() || slot == kNoSlot) {
    return Status(Code::kNotSupported, "it has those weights in no form that can be sent");
  }
  std::memcpy(dest, model_->store()->matrix(slot, layer, matrix) + begin, n);
  return Status::Ok();
}

bool RecipeRunner::Exists(uint32_t layer, uint32_t expert) const {
  return layer < model_->layers().size() &&
         expert < static_cast<uint32_t>(model_->layers()[layer].n_experts);
}

uint64_t RecipeRunner::ExpertBytes(int layer) const {
  return model_->layers()[layer].expert_bytes();
}

// What computes in between may end the reading early: then it is begun again.
Status RecipeRunner::Hold(int layer, uint16_t expert) {
  constexpr int kTries = 20;
  const auto id =
      static_cast<ExpertId>(layer) * static_cast<ExpertId>(model_->sizes().n_experts()) + expert;
  for (int i = 0; i < kTries; i++) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      model_->PrefetchForStart({id});
    }
    model_->store()->AwaitReads();
    const std::lock_guard<std::mutex> lock(mutex_);
    model_->FinishStart();
    if (model_->store()->cache().SlotOf(layer, expert) != kNoSlot) return Status::Ok();
  }
  return Status(Code::kIo,
                Format("it could not be read from %s", model_->file().paths()[0].c_str()));
}

void RecipeRunner::Drop(int layer, uint16_t expert) {
  const std::lock_guard<std::mutex> lock(mutex_);
  model_->Drop(layer, expert);
}

uint64_t RecipeRunner::ScratchBytes(const StreamedModel& model, int n_rows) {
  uint64_t most = 0;
  for (const ExpertLayer& layer : model.layers()) {
    uint64_t n_values = 0, longest = 0;
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = model.file().tensors()[matrix.tensor];
      n_values += tensor.ne[1];
      longest = std::max({longest, tensor.ne[0], tensor.ne[1]});
    }
    // Input, products and what stands between, twice: in the graph and in PairRunner; and the answer.
    most = std::max(most, 2 * (n_values + 2 * longest) + longest);
  }
  return most * sizeof(float) * static_cast<uint64_t>(n_rows);
}

}  // namespace remoe

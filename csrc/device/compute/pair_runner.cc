#include "device/compute/pair_runner.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "base/rounding.h"
#include "device/compute/activations.h"
#include "device/compute/row_products.h"
#include "device/graph/ffn_ops.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr size_t kAlign = 64;
constexpr int kMaxNodes = 64;

bool IsView(const ggml_tensor* node) {
  return FfnOpOf(node) == FfnOp::kView;
}

int EndOfExpert(const Pair* pairs, int begin, int n) {
  int end = begin + 1;
  while (end < n && pairs[end].slot == pairs[begin].slot) end++;
  return end;
}

// A tensor laid out as [ne0, 1, n]: one row per pair.
ggml_tensor* NewRows(ggml_context* context, ggml_type type, int64_t ne0, int64_t n) {
  return ggml_new_tensor_3d(context, type, ne0, 1, n);
}

// The format to gather a product's activations in.
ggml_type GatheredType(const ggml_tensor& weights, const ggml_tensor& input) {
  // Rearranged weights have kernels of their own, which take floats.
  if (weights.extra != nullptr || input.ne[1] != 1) return GGML_TYPE_F32;
  return ActivationType(weights.type);
}

}  // namespace

int PairRunner::StepOf(const ggml_tensor* tensor) const {
  for (size_t i = 0; i < steps_.size(); i++) {
    if (steps_[i].node == tensor) return static_cast<int>(i);
  }
  return -1;
}

int PairRunner::FindExternal(ggml_tensor* tensor, ggml_type type) {
  for (size_t i = 0; i < externals_.size(); i++) {
    if (externals_[i].tensor == tensor && externals_[i].type == type) return static_cast<int>(i);
  }
  External external;
  external.tensor = tensor;
  external.type = type;
  externals_.push_back(external);
  return static_cast<int>(externals_.size()) - 1;
}

// Half of what a merged gate and up product gave: the same rows and columns, fewer of each column's
// values.
bool PairRunner::IsHalf(const ggml_tensor* view) const {
  const ggml_tensor* whole = view->view_src;
  return view->op == GGML_OP_VIEW && whole == view->src[0] && StepOf(whole) >= 0 &&
         view->ne[0] < whole->ne[0] && view->ne[1] == whole->ne[1] && view->ne[2] == whole->ne[2] &&
         view->nb[1] == whole->nb[1] && view->nb[2] == whole->nb[2];
}

const ggml_tensor& PairRunner::ViewOf(const TensorOrigin& origin) const {
  return origin.model->view(origin);
}

bool PairRunner::Prepare(ggml_tensor** nodes, int begin, int end) {
  if (!Collect(nodes, begin, end, true)) return false;
  FindStages();
  SaveInputs();
  return true;
}

void PairRunner::FindStages() {
  kept_bytes_ = 0;
  for (Step& step : steps_) {
    step.second = step.operand[1] >= 0 && ExpertProduct(step.node) != nullptr;
    for (const int operand : step.operand) step.second |= operand >= 0 && steps_[operand].second;
    if (!step.second) continue;
    for (const int operand : step.operand) {
      if (operand < 0 || steps_[operand].second) continue;
      steps_[operand].kept = true;
      kept_bytes_ = std::max(kept_bytes_, steps_[operand].node->ne[0] * sizeof(float));
    }
  }
  can_start_ = kept_bytes_ > 0 && ids_->ne[1] == 1;
  started_.assign(can_start_ ? ids_->ne[0] : 0, false);
  if (can_start_) kept_.resize(steps_.size() * started_.size() * kept_bytes_);
}

// The graph's allocator may have given the result the memory of an input, since in the graph's
// order nobody reads that input any more once the result is written. By pairs, somebody does.
void PairRunner::SaveInputs() {
  const auto overwritten = [this](const uint8_t* begin, const uint8_t* end) {
    return std::any_of(steps_.begin(), steps_.end(), [=](const Step& step) {
      const auto* data = static_cast<const uint8_t*>(step.node->data);
      return step.result && begin < data + ggml_nbytes(step.node) && data < end;
    });
  };
  saved_.resize(std::max(saved_.size(), externals_.size()));
  converted_.resize(saved_.size());
  for (size_t i = 0; i < externals_.size(); i++) {
    const auto* data = static_cast<const uint8_t*>(externals_[i].tensor->data);
    const size_t n_bytes = ggml_nbytes(externals_[i].tensor);
    if (overwritten(data, data + n_bytes)) {
      saved_[i].assign(data, data + n_bytes);
      data = saved_[i].data();
    }
    externals_[i].data = data;
  }
}

const PairRunner::Step* PairRunner::OnlyResult() const {
  const Step* only = nullptr;
  for (const Step& step : steps_) {
    if (!step.result) continue;
    if (only != nullptr) return nullptr;
    only = &step;
  }
  return only;
}

bool PairRunner::can_be_sent() const {
  return externals_.size() == 1 && externals_[0].tensor->ne[1] == 1 && OnlyResult() != nullptr;
}

int64_t PairRunner::n_in() const {
  return externals_[0].tensor->ne[0];
}

int64_t PairRunner::n_out() const {
  return OnlyResult()->node->ne[0];
}

void PairRunner::CopyInput(int token, float* row) const {
  const External& external = externals_[0];
  std::memcpy(row, external.data + token * external.tensor->nb[2], n_in() * sizeof(float));
}

void PairRunner::TakeResult(const Pair& pair, const float* row) {
  const ggml_tensor* node = OnlyResult()->node;
  std::memcpy(static_cast<uint8_t*>(node->data) + pair.k * node->nb[1] + pair.token * node->nb[2],
              row, n_out() * sizeof(float));
}

void PairRunner::GiveNothing(int token, int k) {
  for (const Step& step : steps_) {
    if (!step.result) continue;
    const ggml_tensor* node = step.node;
    std::memset(static_cast<uint8_t*>(node->data) + k * node->nb[1] + token * node->nb[2], 0,
                node->ne[0] * sizeof(float));
  }
}

void PairRunner::Convert(size_t e) {
  External& external = externals_[e];
  if (external.type == GGML_TYPE_F32 || external.converted) return;
  const ggml_tensor* tensor = external.tensor;
  ConvertRows(external.type, external.data, tensor->nb[2], tensor->ne[0], tensor->ne[2],
              &converted_[e]);
  external.converted = true;
}

bool PairRunner::Collect(ggml_tensor** nodes, int begin, int end, bool by_rows) {
  steps_.clear();
  externals_.clear();
  ids_ = nullptr;
  by_rows_ = false;
  pair_bytes_ = 0;
  for (int i = begin; i < end; i++) {
    ggml_tensor* node = nodes[i];
    if (node->op == GGML_OP_NONE) continue;
    // A view computes nothing: one that is no half of a merged product is left out, and only a step
    // that needs it makes the piece unfit.
    if (IsView(node) && !IsHalf(node)) continue;
    Step step;
    step.node = node;
    if (ExpertProduct(node) != nullptr) {
      if (ids_ == nullptr) ids_ = node->src[2];
      if (node->src[2] != ids_) return false;
      step.weights = &ViewOf(*ExpertProduct(node));
      const ggml_tensor& weights = *step.weights;
      step.by_rows = by_rows && ids_->ne[1] == 1 && RowProducts::Fits(weights);
      by_rows_ |= step.by_rows;
      step.operand[1] = StepOf(node->src[1]);
      if (step.operand[1] < 0) {
        const ggml_tensor* input = node->src[1];
        if (input->type != GGML_TYPE_F32 || input->nb[0] != sizeof(float) || input->ne[3] != 1 ||
            input->ne[2] != ids_->ne[1] ||
            (input->view_src != nullptr && StepOf(input->view_src) >= 0)) {
          return false;
        }
        step.external =
            FindExternal(node->src[1], by_rows ? GatheredType(weights, *input) : GGML_TYPE_F32);
      }
    } else {
      step.operand[0] = node->src[0] == nullptr ? -1 : StepOf(node->src[0]);
      if (step.operand[0] < 0) return false;
      switch (FfnOpOf(node)) {
        case FfnOp::kView:
          break;
        case FfnOp::kExpertBias:
          if (node->src[2] != ids_ || StepOf(node->src[1]) >= 0) return false;
          break;
        case FfnOp::kElementwise:
          if (node->src[1] != nullptr) {
            step.operand[1] = StepOf(node->src[1]);
            if (step.operand[1] < 0) return false;
          }
          break;
        case FfnOp::kProduct:
        case FfnOp::kOther:
          return false;
      }
    }
    if (node->type != GGML_TYPE_F32 || node->ne[3] != 1) return false;
    if (ids_ == nullptr || node->ne[1] != ids_->ne[0] || node->ne[2] != ids_->ne[1]) return false;
    if (node->op != GGML_OP_VIEW) pair_bytes_ += RoundUp(node->ne[0] * sizeof(float), kAlign);
    steps_.push_back(step);
  }
  if (steps_.empty()) return false;
  // What no step takes is wanted outside. Nothing that a step takes is: llama.cpp reads the steps
  // within an expert FFN nowhere else.
  for (Step& step : steps_) step.result = true;
  for (const Step& step : steps_) {
    for (const int operand : step.operand) {
      if (operand >= 0) steps_[operand].result = false;
    }
  }
  for (const Step& step : steps_) {
    if (step.result && step.node->op == GGML_OP_VIEW) return false;
  }
  for (const External& external : externals_) pair_bytes_ += RoundUp(external.row_bytes(), kAlign);
  pair_bytes_ += 2 * sizeof(int32_t);
  return true;
}

ggml_status PairRunner::Start(const Pair* pairs, int n) {
  for (int p = 0; p < n; p++) started_[pairs[p].k] = true;
  return RunGroup(pairs, n, Stage::kFirst);
}

ggml_status PairRunner::Run(const Pair* pairs, int n) {
  const auto started = [this](const Pair& pair) { return can_start_ && started_[pair.k]; };
  if (std::none_of(pairs, pairs + n, started)) return RunWhole(pairs, n);
  std::vector<Pair> parted(pairs, pairs + n);
  const auto fresh = std::stable_partition(parted.begin(), parted.end(), started);
  const int n_started = static_cast<int>(fresh - parted.begin());
  const ggml_status status = RunGroup(parted.data(), n_started, Stage::kSecond);
  if (status != GGML_STATUS_SUCCESS || n_started == n) return status;
  return RunWhole(parted.data() + n_started, n - n_started);
}

ggml_status PairRunner::RunWhole(const Pair* pairs, int n) {
  const int capacity = static_cast<int>(std::max<size_t>(1, kScratchBytes / pair_bytes_));
  for (int begin = 0, end = 0; begin < n; begin = end) {
    end = EndOfExpert(pairs, begin, n);
    while (end < n) {
      const int next = EndOfExpert(pairs, end, n);
      if (next - begin > capacity) break;
      end = next;
    }
    const ggml_status status = RunGroup(pairs + begin, end - begin, Stage::kBoth);
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  return GGML_STATUS_SUCCESS;
}

ggml_status PairRunner::RunGroup(const Pair* pairs, int n, Stage stage) {
  const size_t tensors = steps_.size() * 2 + externals_.size() + 2;
  graph_memory_.resize(tensors * ggml_tensor_overhead() +
                       ggml_graph_overhead_custom(kMaxNodes, false) + 4096);
  ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
  const size_t wanted = pair_bytes_ * n + (tensors + 2) * kAlign * 2;
  if (scratch_.size() < wanted) scratch_.resize(wanted);
  uint8_t* free =
      reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<uintptr_t>(scratch_.data()), kAlign));
  const auto place = [&free](ggml_tensor* tensor) {
    tensor->data = free;
    free += RoundUp(ggml_nbytes(tensor), kAlign);
  };

  ggml_tensor* slots = ggml_new_tensor_2d(context, GGML_TYPE_I32, 1, n);
  ggml_tensor* experts = ggml_new_tensor_2d(context, GGML_TYPE_I32, 1, n);
  place(slots);
  place(experts);
  for (int p = 0; p < n; p++) {
    static_cast<int32_t*>(slots->data)[p] = pairs[p].slot;
    static_cast<int32_t*>(experts->data)[p] = pairs[p].expert;
  }
  std::vector<ggml_tensor*> gathered;
  for (size_t e = 0; e < externals_.size() && stage != Stage::kSecond; e++) {
    const External& external = externals_[e];
    const ggml_tensor* tensor = external.tensor;
    ggml_tensor* rows = NewRows(context, external.type, tensor->ne[0], n);
    place(rows);
    Convert(e);
    const size_t row_bytes = external.row_bytes();
    for (int p = 0; p < n; p++) {
      const uint8_t* row = external.converted
                               ? &converted_[e][pairs[p].token * row_bytes]
                               : external.data + (pairs[p].k % tensor->ne[1]) * tensor->nb[1] +
                                     pairs[p].token * tensor->nb[2];
      std::memcpy(static_cast<uint8_t*>(rows->data) + p * rows->nb[2], row, row_bytes);
    }
    gathered.push_back(rows);
  }

  std::vector<ggml_tensor*> made(steps_.size());
  std::vector<ggml_tensor> views;
  views.reserve(steps_.size());
  std::deque<RowProducts> row_products;
  for (size_t i = 0; i < steps_.size(); i++) {
    const Step& step = steps_[i];
    const ggml_tensor* node = step.node;
    if (!In(step, stage)) {
      if (stage != Stage::kSecond || !step.kept) continue;
      made[i] = NewRows(context, GGML_TYPE_F32, node->ne[0], n);
      place(made[i]);
      for (int p = 0; p < n; p++) {
        std::memcpy(static_cast<uint8_t*>(made[i]->data) + p * made[i]->nb[2], Kept(i, pairs[p].k),
                    node->ne[0] * sizeof(float));
      }
      continue;
    }
    ggml_tensor* copy;
    if (step.weights != nullptr) {
      views.push_back(*step.weights);
      ggml_tensor* input = step.operand[1] >= 0 ? made[step.operand[1]] : gathered[step.external];
      if (step.by_rows) {
        copy = row_products.emplace_back(views.back(), static_cast<int32_t*>(slots->data))
                   .Append(context, input);
      } else {
        copy = ggml_mul_mat_id(context, &views.back(), input, slots);
      }
    } else if (node->op == GGML_OP_VIEW) {
      ggml_tensor* parent = made[step.operand[0]];
      copy = ggml_view_3d(context, parent, node->ne[0], 1, n, parent->nb[1], parent->nb[2],
                          node->view_offs);
    } else {
      copy = NewRows(context, GGML_TYPE_F32, node->ne[0], n);
      copy->op = node->op;
      for (int s = 0; s < 2; s++) {
        if (step.operand[s] >= 0) copy->src[s] = made[step.operand[s]];
      }
      if (node->op == GGML_OP_ADD_ID) {
        copy->src[1] = node->src[1];
        copy->src[2] = experts;
      }
    }
    if (node->op == copy->op && node->op != GGML_OP_VIEW) {
      // Precision, activation kind, limits: whatever the architecture asked for.
      std::memcpy(copy->op_params, node->op_params, sizeof(node->op_params));
    }
    if (node->op != GGML_OP_VIEW) place(copy);
    made[i] = copy;
  }
  ggml_cgraph* graph = ggml_new_graph_custom(context, kMaxNodes, false);
  for (size_t i = 0; i < steps_.size(); i++) {
    const bool wanted = steps_[i].result || (stage == Stage::kFirst && steps_[i].kept);
    if (wanted && In(steps_[i], stage)) ggml_build_forward_expand(graph, made[i]);
  }
  const ggml_status status = ggml_backend_graph_compute(backend_, graph);

  for (size_t i = 0; i < steps_.size() && status == GGML_STATUS_SUCCESS; i++) {
    if (!In(steps_[i], stage)) continue;
    for (int p = 0; p < n && stage == Stage::kFirst && steps_[i].kept; p++) {
      std::memcpy(Kept(i, pairs[p].k),
                  static_cast<const uint8_t*>(made[i]->data) + p * made[i]->nb[2],
                  made[i]->ne[0] * sizeof(float));
    }
    if (!steps_[i].result) continue;
    const ggml_tensor* wanted_at = steps_[i].node;
    for (int p = 0; p < n; p++) {
      std::memcpy(static_cast<uint8_t*>(wanted_at->data) + pairs[p].k * wanted_at->nb[1] +
                      pairs[p].token * wanted_at->nb[2],
                  static_cast<const uint8_t*>(made[i]->data) + p * made[i]->nb[2],
                  made[i]->ne[0] * sizeof(float));
    }
  }
  ggml_free(context);
  return status;
}

}  // namespace remoe

#include "device/executor.h"

#include <algorithm>
#include <chrono>

#include "base/format.h"
#include "cache/waves.h"
#include "device/ffn_ops.h"
#include "device/router_scores.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

constexpr int kMaxNodes = 128;

struct Timer {
  explicit Timer(std::atomic<uint64_t>* total) : total(total) {}
  ~Timer() {
    *total += std::chrono::duration_cast<std::chrono::nanoseconds>(
                  std::chrono::steady_clock::now() - start)
                  .count();
  }
  std::atomic<uint64_t>* total;
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
};

ggml_status Refuse(StreamedModel* model, const Status& status) {
  model->Fail(status);
  model->AbandonStep();
  // What was read ahead was for the rest of this step.
  if (model->store() != nullptr) model->store()->CancelAhead();
  return GGML_STATUS_FAILED;
}

}  // namespace

ggml_status Executor::Run(ggml_cgraph* graph) {
  Split(graph);
  if (segments_.empty()) return ggml_backend_graph_compute(cpu_, graph);
  for (const Segment& segment : segments_) {
    const ggml_status status = RunSegment(graph, segment);
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  return GGML_STATUS_SUCCESS;
}

// Cuts the graph before each product that belongs to another event than the one before it.
void Executor::Split(ggml_cgraph* graph) {
  segments_.clear();
  const int n = ggml_graph_n_nodes(graph);
  ggml_tensor** nodes = ggml_graph_nodes(graph);
  unsigned used = 0;
  for (int i = 0; i < n; i++) {
    const TensorOrigin* origin = ExpertProduct(nodes[i]);
    if (origin == nullptr) continue;
    bool fresh = segments_.empty();
    if (!fresh) {
      const ggml_tensor* first = segments_.back().products.front();
      fresh = OriginOf(first->src[0])->layer != origin->layer ||
              first->src[2] != nodes[i]->src[2] || (used & 1u << origin->matrix) != 0;
    }
    if (fresh) {
      if (!segments_.empty()) segments_.back().end = i;
      Segment segment;
      segment.begin = segments_.empty() ? 0 : i;
      segments_.push_back(segment);
      used = 0;
    }
    used |= 1u << origin->matrix;
    segments_.back().products.push_back(nodes[i]);
  }
  if (!segments_.empty()) segments_.back().end = n;
}

bool Executor::ReadIds(const ggml_tensor* ids, int n_experts) {
  const int64_t k = ids->ne[0], n_tokens = ids->ne[1];
  k_ = static_cast<size_t>(k);
  ids_.resize(k * n_tokens);
  experts_.clear();
  index_of_.assign(n_experts, -1);
  for (int64_t t = 0; t < n_tokens; t++) {
    for (int64_t i = 0; i < k; i++) {
      // The ids are a strided view of a sort: honour both strides.
      const int32_t id = *reinterpret_cast<const int32_t*>(static_cast<const char*>(ids->data) +
                                                           t * ids->nb[1] + i * ids->nb[0]);
      if (id < 0 || id >= n_experts) return false;
      ids_[t * k + i] = id;
      if (index_of_[id] < 0) {
        index_of_[id] = static_cast<int32_t>(experts_.size());
        experts_.push_back(static_cast<uint16_t>(id));
      }
    }
  }
  return true;
}

ggml_status Executor::RunSegment(ggml_cgraph* graph, const Segment& segment) {
  const TensorOrigin& origin = *OriginOf(segment.products.front()->src[0]);
  StreamedModel* model = origin.model;
  fit_ = Fit::kUnknown;
  const Timer timer(&model->ffn_ns);
  if (model->interrupted()) {
    model->AbandonStep();
    if (model->store() != nullptr) model->store()->CancelAhead();
    return GGML_STATUS_ABORTED;
  }
  ExpertStore* store = model->store();
  if (store == nullptr) {
    return Refuse(model, Status(Code::kInvalidArgument, "the model has no expert cache yet"));
  }
  const ggml_tensor* ids = segment.products.front()->src[2];
  // The last layer of a batch that asks for no output is run for no token.
  if (ids->ne[1] == 0) return GGML_STATUS_SUCCESS;
  const int n_experts = model->layers()[origin.layer].n_experts;
  if (!ReadIds(ids, n_experts)) {
    return Refuse(model, Status(Code::kCorrupt,
                                Format("the router of layer %d chose an expert that does not exist",
                                       model->layers()[origin.layer].block)));
  }
  if (model->Continues(origin)) {
    experts_.clear();
    for (const Placement& placement : store->placements()) experts_.push_back(placement.expert);
    IndexExperts();
    MarkUsed(segment, model);
    return RunOpenEvent(graph, segment, model);
  }
  const Event event = model->Routed(origin, Describe(segment.products.front(), origin));
  spent_.assign(n_experts, false);
  Lookahead& lookahead = model->lookahead();
  if (!lookahead.started()) return RunLayer(graph, segment, model, event);
  run_.layer = origin.layer;
  run_.product = segment.products.front();
  run_.ids = ids_.data();
  run_.n_tokens = event.n_tokens;
  run_.k = static_cast<int>(k_);
  run_.n_distinct = event.n;
  if (!event.continued) lookahead.BeginLayer(run_);
  if (run_.n_tokens > 1) OrderByLastUse(*store);
  const ggml_status status = RunLayer(graph, segment, model, event);
  lookahead.EndLayer();
  return status;
}

ggml_status Executor::RunLayer(ggml_cgraph* graph, const Segment& segment, StreamedModel* model,
                               const Event& event) {
  const ExpertStore* store = model->store();
  size_t n_slots = static_cast<size_t>(store->cache().geometry().n_slots);
  if (experts_.size() <= n_slots) {
    // Smaller waves where the next one can be read while the present one computes.
    const size_t half = static_cast<size_t>(store->event_slots());
    const bool split = experts_.size() > half && model->lookahead().batch_reads();
    if (!split || !ByPairs(graph, segment)) return RunEvent(graph, segment, model, event);
  }

  // More experts than slots: in waves. Lowering the batch instead would change how the dense
  // products round, and with them the output.
  if (!ByPairs(graph, segment)) {
    return Refuse(model,
                  Status(Code::kBudgetTooSmall,
                         Format("layer %d needs %zu experts at once for this batch and the cache "
                                "has %zu slots: lower --ubatch or raise --cache",
                                model->layers()[event.layer].block, experts_.size(), n_slots)));
  }
  if (model->lookahead().batch_reads()) {
    n_slots = std::min(n_slots, static_cast<size_t>(store->event_slots()));
  }
  std::vector<uint16_t> all = experts_;
  OrderForWaves(store->cache(), event.layer, &all);
  Event wave = event;
  for (size_t begin = 0; begin < all.size(); begin += n_slots) {
    const size_t end = std::min(all.size(), begin + n_slots);
    experts_.assign(all.begin() + begin, all.begin() + end);
    wave.continued = event.continued || begin > 0;
    const ggml_status status =
        RunEvent(graph, segment, model, wave, all.data() + end, all.size() - end);
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  // Where other operations cut an FFN in pieces, the next piece begins its own event: the last
  // wave's experts are not all of the step's.
  (void)model->EndEvent();
  return GGML_STATUS_SUCCESS;
}

bool Executor::ByPairs(ggml_cgraph* graph, const Segment& segment) {
  if (fit_ == Fit::kUnknown) {
    const bool fits = pairs_.Prepare(ggml_graph_nodes(graph), segment.begin, segment.end);
    fit_ = fits ? Fit::kYes : Fit::kNo;
  }
  return fit_ == Fit::kYes;
}

Event Executor::Describe(const ggml_tensor* product, const TensorOrigin& origin) {
  const StreamedModel& model = *origin.model;
  Event event;
  event.layer = origin.layer;
  event.n_tokens = static_cast<int>(product->src[2]->ne[1]);
  event.experts = experts_.data();
  event.n = static_cast<int>(experts_.size());
  routed_.assign(ids_.begin(), ids_.end());
  event.ids = routed_.data();
  event.top_k = static_cast<int>(k_);
  const ggml_tensor* scores = RouterScores(product);
  origin.model->SawScores(scores != nullptr);
  event.n_prob_tokens = scores != nullptr ? model.WantedProbabilities(event.n_tokens) : 0;
  if (event.n_prob_tokens > 0) {
    std::atomic<uint64_t> unrecorded{0};
    const Timer timer(model.tracing() ? &origin.model->trace_ns : &unrecorded);
    probs_.resize(static_cast<size_t>(event.n_prob_tokens) * scores->ne[0]);
    ReadProbabilities(scores, event.n_tokens - event.n_prob_tokens, event.n_tokens, probs_.data());
    event.probs = probs_.data();
  }
  return event;
}

// Of a prompt that takes most experts of every layer, the cache can keep a share of each layer's,
// and not whole layers: those that the prompt's end used, which decoding will want again, unless
// the policy knows better (Policy::LeastFirst).
void Executor::OrderByLastUse(const ExpertStore& store) {
  last_use_.assign(index_of_.size(), -1);
  for (size_t i = 0; i < ids_.size(); i++) last_use_[ids_[i]] = static_cast<int32_t>(i / k_);
  std::stable_sort(experts_.begin(), experts_.end(),
                   [this](uint16_t a, uint16_t b) { return last_use_[a] < last_use_[b]; });
  const Geometry& geometry = store.cache().geometry();
  if (geometry.n_slots >= geometry.total()) return;
  // Room to work in: the layer that computes and a quarter of the next, whose rest comes while its
  // first experts compute; half of a smaller cache. More of it would be less for decoding.
  const int working = std::min(geometry.n_experts * 5 / 4, geometry.n_slots / 2);
  const size_t kept = std::max(
      k_, static_cast<size_t>(geometry.n_slots - working) / static_cast<size_t>(geometry.n_layers));
  for (size_t i = 0; i + kept < experts_.size(); i++) spent_[experts_[i]] = true;
}

int Executor::SpentFirst() {
  const auto kept = std::stable_partition(experts_.begin(), experts_.end(),
                                          [this](uint16_t expert) { return spent_[expert]; });
  return static_cast<int>(kept - experts_.begin());
}

void Executor::IndexExperts() {
  std::fill(index_of_.begin(), index_of_.end(), -1);
  for (size_t i = 0; i < experts_.size(); i++) index_of_[experts_[i]] = static_cast<int32_t>(i);
}

void Executor::MarkUsed(const Segment& segment, StreamedModel* model) {
  for (const ggml_tensor* product : segment.products) model->MarkUsed(*OriginOf(product->src[0]));
}

ggml_status Executor::RunEvent(ggml_cgraph* graph, const Segment& segment, StreamedModel* model,
                               Event event, const uint16_t* rest, size_t n_rest) {
  event.n_spent = SpentFirst();
  IndexExperts();
  event.experts = experts_.data();
  event.n = static_cast<int>(experts_.size());
  const Status status = model->BeginEvent(event);
  if (!status.ok()) return Refuse(model, status);
  if (model->lookahead().started()) model->lookahead().ReadAhead(run_, rest, n_rest, cpu_);
  MarkUsed(segment, model);
  return RunOpenEvent(graph, segment, model);
}

ggml_status Executor::RunOpenEvent(ggml_cgraph* graph, const Segment& segment,
                                   StreamedModel* model) {
  ExpertStore* store = model->store();
  const std::vector<Placement>& placements = store->placements();
  slots_.assign(ids_.size(), kNoSlot);
  size_t present = 0;
  for (size_t i = 0; i < ids_.size(); i++) {
    const int32_t index = index_of_[ids_[i]];
    if (index < 0) continue;  // of another wave
    slots_[i] = placements[index].slot;
    present++;
  }
  const bool whole = store->missing_to_come() == 0 && present == ids_.size();
  ggml_status status;
  Status failure;
  const bool one_token = ids_.size() == k_;
  // A whole batch is not prepared for nothing.
  if ((!whole || one_token) && ByPairs(graph, segment) && (!whole || pairs_.by_rows())) {
    status = RunPairs(store, &failure);
  } else {
    std::vector<int> arrived;
    while (store->missing_to_come() > 0 && failure.ok()) failure = store->WaitArrived(&arrived);
    status = failure.ok() ? ComputeWhole(graph, segment, *model) : GGML_STATUS_FAILED;
  }
  if (status == GGML_STATUS_SUCCESS) {
    model->EndIfComplete();
    return status;
  }
  model->AbandonStep();
  return failure.ok() ? status : Refuse(model, failure);
}

// Residents at once, then each group of experts as it arrives, begun when only down is to come.
ggml_status Executor::RunPairs(ExpertStore* store, Status* failure) {
  const std::vector<Placement>& placements = store->placements();
  ready_.assign(placements.size(), false);
  // What was missing when the event began may have come for an earlier piece of it.
  const bool all = store->missing_to_come() == 0;
  for (size_t i = 0; i < placements.size(); i++) ready_[i] = all || store->ready(i);
  std::vector<int> arrived, partly;
  while (true) {
    CollectReadyPairs();
    if (!work_.empty()) {
      const ggml_status status = pairs_.Run(work_.data(), static_cast<int>(work_.size()));
      if (status != GGML_STATUS_SUCCESS) return status;
    }
    if (store->missing_to_come() == 0) return GGML_STATUS_SUCCESS;
    arrived.clear();
    partly.clear();
    *failure = store->WaitArrived(&arrived, pairs_.can_begin() ? &partly : nullptr);
    if (!failure->ok()) return GGML_STATUS_FAILED;
    if (!partly.empty()) {
      SetReady(partly);
      CollectReadyPairs();
      const ggml_status status = pairs_.Begin(work_.data(), static_cast<int>(work_.size()));
      if (status != GGML_STATUS_SUCCESS) return status;
    }
    SetReady(arrived);
  }
}

void Executor::SetReady(const std::vector<int>& indices) {
  std::fill(ready_.begin(), ready_.end(), false);
  for (const int index : indices) ready_[index] = true;
}

void Executor::CollectReadyPairs() {
  work_.clear();
  for (size_t i = 0; i < ids_.size(); i++) {
    const int32_t index = index_of_[ids_[i]];
    if (index < 0 || !ready_[index]) continue;
    work_.push_back(
        {static_cast<int32_t>(i / k_), static_cast<int32_t>(i % k_), ids_[i], slots_[i]});
  }
  // An expert's pairs side by side: its weights are walked through once.
  std::stable_sort(work_.begin(), work_.end(),
                   [](const Pair& a, const Pair& b) { return a.slot < b.slot; });
}

ggml_status Executor::ComputeWhole(ggml_cgraph* graph, const Segment& segment,
                                   const StreamedModel& model) {
  const ggml_tensor* ids = segment.products.front()->src[2];
  ggml_tensor slot_ids = *ids;
  slot_ids.op = GGML_OP_NONE;
  slot_ids.view_src = nullptr;
  std::fill(std::begin(slot_ids.src), std::end(slot_ids.src), nullptr);
  slot_ids.nb[0] = sizeof(int32_t);
  slot_ids.nb[1] = slot_ids.nb[0] * ids->ne[0];
  slot_ids.nb[2] = slot_ids.nb[3] = slot_ids.nb[1] * ids->ne[1];
  slot_ids.data = slots_.data();

  std::vector<ggml_tensor> views;
  views.reserve(segment.products.size());
  std::vector<std::pair<ggml_tensor*, ggml_tensor*>> saved;  // (weights, ids) of each product
  for (ggml_tensor* product : segment.products) {
    views.push_back(model.view(*OriginOf(product->src[0])));
    saved.emplace_back(product->src[0], product->src[2]);
    product->src[0] = &views.back();
    product->src[2] = &slot_ids;
  }
  ggml_status status;
  if (segments_.size() == 1) {
    status = ggml_backend_graph_compute(cpu_, graph);
  } else {
    graph_memory_.resize(ggml_graph_overhead_custom(kMaxNodes, false) + 1024);
    ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
    ggml_cgraph* piece = ggml_new_graph_custom(context, kMaxNodes, false);
    for (int i = segment.begin; i < segment.end; i++) {
      ggml_graph_add_node(piece, ggml_graph_node(graph, i));
    }
    status = ggml_backend_graph_compute(cpu_, piece);
    ggml_free(context);
  }
  for (size_t i = 0; i < segment.products.size(); i++) {
    segment.products[i]->src[0] = saved[i].first;
    segment.products[i]->src[2] = saved[i].second;
  }
  return status;
}

}  // namespace remoe

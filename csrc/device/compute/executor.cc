#include "device/compute/executor.h"

#include <algorithm>
#include <new>

#include "base/format.h"
#include "cache/waves.h"
#include "device/compute/device_pairs.h"
#include "device/graph/ffn_ops.h"
#include "device/graph/router_scores.h"
#include "device/stopwatch.h"
#include "device/streamed_model.h"

namespace remoe {

namespace {

// Whether a node multiplies by experts of a model that was never loaded, which have no memory.
bool HasUnloadedExperts(ggml_cgraph* graph) {
  for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
    const ggml_tensor* node = ggml_graph_node(graph, i);
    if (InWeightBuffer(node->src[0]) && OriginOf(node->src[0]) == nullptr) return true;
  }
  return false;
}

}  // namespace

Executor::Executor(ggml_backend_t cpu, bool scores_are_kept, ggml_backend_t gpu)
    : cpu_(cpu),
      gpu_(gpu),
      scores_are_kept_(scores_are_kept),
      own_pairs_(gpu != nullptr ? std::make_unique<DevicePairs>(gpu)
                                : std::make_unique<PairRunner>(cpu)),
      pairs_(own_pairs_.get()) {}

Executor::~Executor() {
  ggml_backend_buffer_free(slot_ids_);
}

ggml_status Executor::Run(ggml_cgraph* graph) {
  return RunAs<false>(graph);
}

template <bool kLossy>
ggml_status Executor::RunAs(ggml_cgraph* graph) {
  if (HasUnloadedExperts(graph)) return GGML_STATUS_FAILED;
  CutByLayer(graph, &pieces_);
  if (pieces_.empty()) return ggml_backend_graph_compute(backend(), graph);
  for (const Piece& piece : pieces_) {
    const Job job{graph, &piece, piece.origin().model};
    const Status here = job.model->CheckProcess();
    if (!here.ok()) {  // who has the lock may be a thread of the parent's
      job.model->failure().Keep(here);
      return GGML_STATUS_FAILED;
    }
    const std::lock_guard<std::mutex> lock(job.model->step_mutex());
    ggml_status status;
    try {
      status = RunPiece<kLossy>(job);
    } catch (const std::bad_alloc&) {
      // Nothing may unwind through ggml.
      EndElsewhere(job);
      status =
          Refuse(job.model, Status(Code::kOutOfMemory, "no memory to compute experts in"), true);
    }
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  return GGML_STATUS_SUCCESS;
}

ggml_status Executor::Refuse(StreamedModel* model, const Status& status, bool recorded) {
  model->AbandonStep(recorded);
  if (status.code() == Code::kCancelled) return GGML_STATUS_ABORTED;
  model->failure().Keep(status);
  return GGML_STATUS_FAILED;
}

template <bool kLossy>
ggml_status Executor::RunPiece(const Job& job) {
  StreamedModel* model = job.model;
  const TensorOrigin& origin = job.piece->origin();
  const Stopwatch stopwatch(&model->ffn_ns);
  // Of a step of which no layer has come yet, nothing is in a trace.
  const bool in_step = model->InStep(origin);
  if (model->interruption().raised()) {
    return Refuse(model, Status(Code::kCancelled, "interrupted"), in_step);
  }
  if (model->store() == nullptr) {
    return Refuse(model, Status(Code::kInvalidArgument, "the model has no expert cache yet"),
                  in_step);
  }
  // The last layer of a batch that asks for no output is run for no token.
  if (job.piece->ids()->ne[1] == 0) return GGML_STATUS_SUCCESS;
  if (!in_step) {
    const Status unchanged = model->CheckFiles();
    if (!unchanged.ok()) return Refuse(model, unchanged, false);
  }
  fit_ = Fit::kUnknown;
  const ExpertLayer& layer = model->layers()[origin.layer];
  const ggml_tensor* product = job.piece->products.front();
  const ggml_tensor ids = OnHost(product->src[2], &ids_on_host_);
  if (!step_.Route(origin.layer, layer.n_experts, product, &ids)) {
    return Refuse(
        model,
        Status(Code::kCorrupt,
               Format("the router of layer %d chose an expert that does not exist", layer.block)),
        in_step);
  }
  Status status;
  if (model->Continues(origin, this)) {
    status = RunOn(job);
  } else {
    if constexpr (kLossy) {
      status = ChooseAnew(job);
      if (!status.ok()) return Refuse(model, status, in_step);
    }
    Event event = step_.Describe();
    if constexpr (kLossy) {
      if (left_out_) event.ids = nullptr;
    }
    Complete(job, &event);
    status = RunLayer(job, event);
  }
  if (!status.ok()) return Refuse(model, status, true);
  model->EndIfComplete(origin.layer);
  return GGML_STATUS_SUCCESS;
}

template ggml_status Executor::RunAs<true>(ggml_cgraph* graph);

// A later piece of the open event: what was missing when it began has come for an earlier piece.
Status Executor::RunOn(const Job& job) {
  ExpertStore* store = job.model->store();
  MarkUsed(job);
  step_.Place(store->placements());
  wave_.clear();
  for (const Placement& placement : store->placements()) wave_.push_back(placement.expert);
  store->arrivals()->PostWeights(store->BeginStep(), wave_);
  return Compute(job);
}

void Executor::MarkUsed(const Job& job) {
  for (const ggml_tensor* product : job.piece->products) {
    job.model->MarkUsed(*OriginOf(product->src[0]));
  }
}

// Completes the event: probabilities, where the graph has them and someone wants them, and its place
// in the job.
void Executor::Complete(const Job& job, Event* event) {
  StreamedModel* model = job.model;
  const ggml_tensor* product = job.piece->products.front();
  const RouterNote* note = model->router_notes().Find(product);
  const ggml_tensor* scores = note != nullptr ? note->logits : RouterScores(product);
  const bool seen =
      scores_are_kept_ && scores != nullptr && (note != nullptr || InHostMemory(scores));
  model->SawScores(seen);
  event->n_prob_tokens = seen ? model->WantedProbabilities(event->n_tokens) : 0;
  if (event->n_prob_tokens > 0) {
    const Stopwatch stopwatch(model->recorder().on() ? &model->recorder().ns : nullptr);
    probs_.resize(static_cast<size_t>(event->n_prob_tokens) * scores->ne[0]);
    const int begin = event->n_tokens - event->n_prob_tokens;
    if (note != nullptr) {
      note->ReadProbabilities(begin, event->n_tokens, probs_.data());
    } else {
      ReadProbabilities(scores, begin, event->n_tokens, probs_.data());
    }
    event->probs = probs_.data();
  }
  model->Routed(job.piece->origin(), event);
}

Status Executor::RunLayer(const Job& job, const Event& event) {
  StreamedModel* model = job.model;
  PrefetchPlanner& planner = model->planner();
  const bool plans = planner.PlansFor(event.layer);
  if (planner.started() && !plans) planner.Beside();
  if (plans) {
    const bool decode = event.phase == Phase::kDecode;
    if (!event.continued) planner.BeginLayer(step_, decode);
    if (!decode && step_.n_tokens() > 1) {
      step_.OrderByLastUse(model->store()->cache().geometry());
    }
  }
  (void)model->EndEvent();
  model->ResizeNow();
  model->store()->BeginStep();
  SendElsewhere(job);
  here_.clear();
  step_.Unplaced(&here_);
  Status status;
  bool continued = event.continued;
  if (step_.n_sent() > 0) {
    model->store()->Note(event);
    continued = true;
  }
  if (!here_.empty()) {
    Event ours = event;
    ours.continued = continued;
    status = RunExperts(job, ours, &here_);
    continued = true;
  }
  if (status.ok() && step_.n_sent() > 0) status = AwaitElsewhere(job);
  here_.clear();
  if (status.ok() && !model->elsewhere().empty()) step_.Unplaced(&here_);
  if (!here_.empty()) {
    Event rest = event;
    rest.continued = continued;
    status = RunExperts(job, rest, &here_);
    // The next piece of the FFN, if there is one, begins an event of its own.
    if (status.ok()) (void)model->EndEvent();
  }
  EndElsewhere(job);
  if (plans) planner.EndLayer();
  return status;
}

Status Executor::TakeArrivals(const Job& job, bool wait, bool all_but_down) {
  ExpertStore* store = job.model->store();
  arrived_.clear();
  if (wait) {
    store->Wait(all_but_down, &arrived_);
  } else {
    store->arrivals()->TakeNow(&arrived_);
  }
  for (const Arrival& arrival : arrived_) {
    if (arrival.kind != Arrival::Kind::kRows || fit_ != Fit::kYes || !pairs_->can_be_sent())
      continue;
    if (!step_.Wants(arrival, pairs_->n_out())) continue;
    const float* row = arrival.rows.data();
    for (const Pair& pair : step_.PairsOf(arrival.expert)) {
      pairs_->TakeResult(pair, row);
      row += pairs_->n_out();
    }
    step_.MarkComputed(arrival.expert);
  }
  return step_.Take(arrived_);
}

Status Executor::RunExperts(const Job& job, const Event& event, std::vector<uint16_t>* experts) {
  StreamedModel* model = job.model;
  const ExpertStore* store = model->store();
  size_t n_slots = static_cast<size_t>(store->cache().geometry().n_slots);
  const bool batch_reads = model->planner().batch_reads();
  if (experts->size() <= n_slots) {
    // Smaller waves where the next one can be read while the present one computes.
    const bool split = batch_reads && gpu_ == nullptr &&
                       experts->size() > static_cast<size_t>(store->event_slots());
    if (!split || !ByPairs(job)) {
      wave_ = *experts;
      return RunEvent(job, event, &wave_, nullptr, 0);
    }
  }
  // More experts than slots: in waves. Lowering the batch instead would change how the dense
  // products round, and with them the output.
  if (!ByPairs(job)) {
    model->NeedAtOnce(static_cast<int>(experts->size()));
    n_slots = static_cast<size_t>(store->cache().geometry().n_slots);
    if (experts->size() <= n_slots) {
      wave_ = *experts;
      return RunEvent(job, event, &wave_, nullptr, 0);
    }
    return Status(Code::kBudgetTooSmall,
                  Format("layer %d needs %zu experts at once for this batch and the cache has %zu "
                         "slots: lower --ubatch or raise --cache",
                         model->layers()[event.layer].block, experts->size(), n_slots));
  }
  OrderForWaves(store->cache(), event.layer, experts);
  Event wave = event;
  for (size_t begin = 0, end = 0; begin < experts->size(); begin = end) {
    if (begin > 0) {  // a neighbour that wants memory does not wait for the whole layer
      (void)model->EndEvent();
      model->ResizeNow();
    }
    n_slots = static_cast<size_t>(store->cache().geometry().n_slots);
    if (batch_reads) n_slots = std::min(n_slots, static_cast<size_t>(store->event_slots()));
    end = std::min(experts->size(), begin + n_slots);
    wave_.assign(experts->begin() + begin, experts->begin() + end);
    wave.continued = event.continued || begin > 0;
    REMOE_RETURN_IF_ERROR(
        RunEvent(job, wave, &wave_, experts->data() + end, experts->size() - end));
  }
  // Where other operations cut an FFN in pieces, the next piece begins its own event: the last
  // wave's experts are not all of the step's.
  (void)model->EndEvent();
  return Status::Ok();
}

Status Executor::RunEvent(const Job& job, Event event, std::vector<uint16_t>* wave,
                          const uint16_t* rest, size_t n_rest) {
  StreamedModel* model = job.model;
  event.n_expendable = step_.ExpendableFirst(wave);
  event.experts = wave->data();
  event.n = static_cast<int>(wave->size());
  REMOE_RETURN_IF_ERROR(model->BeginEvent(event, this));
  step_.Place(model->store()->placements());
  if (model->planner().PlansFor(event.layer)) {
    host_input_ = OnHost(step_.input(), &input_on_host_);
    step_.SetInput(&host_input_);
    model->planner().Plan(step_, rest, n_rest, cpu_);
  }
  MarkUsed(job);
  return Compute(job);
}

Status Executor::Compute(const Job& job) {
  REMOE_RETURN_IF_ERROR(TakeArrivals(job, false, false));
  const bool whole = step_.all_there();
  const bool waits = gpu_ != nullptr && step_.n_tokens() > 1 && step_.all_placed();
  // A whole batch is not prepared for nothing.
  if (!waits && (!whole || step_.n_tokens() == 1) && ByPairs(job) &&
      (!whole || pairs_->by_rows())) {
    return ComputePairs(job);
  }
  while (step_.n_awaited() > 0) REMOE_RETURN_IF_ERROR(TakeArrivals(job, true, false));
  return ComputeWhole(job);
}

// Residents at once, then each group of experts as it arrives, begun when only down is to come.
Status Executor::ComputePairs(const Job& job) {
  // Of a wave on a GPU all are awaited, so that the clock does not choose the shapes that kernels see.
  while (gpu_ != nullptr && step_.n_tokens() > 1 && step_.n_awaited() > 0) {
    REMOE_RETURN_IF_ERROR(TakeArrivals(job, true, false));
  }
  while (true) {
    const std::vector<Pair>& ready = step_.Ready();
    if (!ready.empty()) {
      REMOE_RETURN_IF_ERROR(Failed(pairs_->Run(ready.data(), static_cast<int>(ready.size()))));
    }
    if (step_.n_awaited() == 0) return Status::Ok();
    REMOE_RETURN_IF_ERROR(TakeArrivals(job, true, pairs_->can_start()));
    const std::vector<Pair>& started = step_.AllButDown();
    if (!started.empty()) {
      REMOE_RETURN_IF_ERROR(
          Failed(pairs_->Start(started.data(), static_cast<int>(started.size()))));
    }
  }
}

bool Executor::ByPairs(const Job& job) {
  if (fit_ == Fit::kUnknown) {
    const Piece& piece = *job.piece;
    const bool fits = pairs_->Prepare(ggml_graph_nodes(job.graph), piece.begin, piece.end);
    fit_ = fits ? Fit::kYes : Fit::kNo;
  }
  return fit_ == Fit::kYes;
}

}  // namespace remoe

#include "device/compute/prefetch_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// Not with ThreadSanitizer: the loader chooses a clone before the sanitizer has begun to run.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define REMOE_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define REMOE_WIDE
#endif

namespace remoe {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFarTokens = 128;       // of a batch, that are looked at for two layers ahead
constexpr int kMostJudged = 8;        // of a batch, whose predictions are judged rank by rank
constexpr int kStreamTokens = 8;      // smaller prompts are read ahead of like single tokens
constexpr float kWholeLayer = 0.75f;  // of a layer in use: where no router is known, the next whole
constexpr float kStreamCertainty = 0.6f;
constexpr float kNearlySure = 0.9f;           // before the less sure ones, also of the layer before
constexpr uint64_t kMostInFlight = 2u << 20;  // of one matrix, in the background

constexpr int kLanes = 16;
constexpr int kMostNodes = 8;

REMOE_WIDE float Dot(const float* a, const float* b, size_t n) {
  float sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; lane++) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (; i < n; i++) sum += a[i] * b[i];
  for (const float each : sums) sum += each;
  return sum;
}

}  // namespace

PrefetchPlanner::PrefetchPlanner(const std::vector<ExpertLayer>* layers, int n_trunk, int n_used,
                                 HostCopies* copies)
    : layers_(layers),
      n_trunk_(n_trunk),
      n_used_(n_used),
      copies_(copies),
      routers_(layers->size()) {
  for (const ExpertLayer& layer : *layers) n_experts_ = std::max(n_experts_, layer.n_experts);
}

void PrefetchPlanner::Start(PrefetchMode mode, ExpertStore* store) {
  store_ = store;
  governor_ = std::make_unique<Governor>(mode);
  calibration_ =
      std::make_unique<Calibration>(static_cast<int>(layers_->size()), n_experts_, n_used_);
  predictions_.resize(layers_->size() * Calibration::kMaxDistance);
  uint64_t expert_bytes = 0, matrix_bytes = 0;
  for (const ExpertLayer& layer : *layers_) {
    expert_bytes = std::max(expert_bytes, layer.expert_bytes());
    for (const ExpertMatrix& matrix : layer.matrices)
      matrix_bytes = std::max(matrix_bytes, matrix.expert_bytes);
  }
  governor_->SetSizes(expert_bytes, std::min(matrix_bytes, kMostInFlight));
  for (RouterChain& router : routers_) BringToHost(&router);
}

uint64_t PrefetchPlanner::BytesToCopy() const {
  uint64_t n_bytes = 0;
  for (const RouterChain& router : routers_) {
    n_bytes += HostCopies::BytesFor(router.weight) + HostCopies::BytesFor(router.norm);
    for (const RouterChain::Step& step : router.steps) n_bytes += HostCopies::BytesFor(step.bias);
  }
  return n_bytes;
}

void PrefetchPlanner::BringToHost(RouterChain* router) {
  router->weight = copies_->Of(router->weight);
  router->norm = copies_->Of(router->norm);
  for (RouterChain::Step& step : router->steps) step.bias = copies_->Of(step.bias);
}

void PrefetchPlanner::Stop() {
  store_ = nullptr;
  governor_.reset();
  calibration_.reset();
  predictions_.clear();
  plan_ = PrefetchPlan();
  counted_ = StoreCounts();
  last_layer_ = -1;
}

void PrefetchPlanner::Learn(int layer, const ggml_tensor* product) {
  if (routers_[layer].weight != nullptr) return;
  RouterChain chain;
  std::string why;
  const int n_experts = (*layers_)[layer].n_experts;
  bool known = FollowRouter(product, n_experts, &chain, &why);
  if (known && Unreshaped(product->src[1]) != Unreshaped(chain.input)) {
    known = false;
    why = "its routers see other activations than its experts";
  }
  if (known) {
    chain.input = chain.logits = nullptr;  // of a graph that may never run
    if (started()) BringToHost(&chain);
    routers_[layer] = std::move(chain);
  } else if (why_not_.empty()) {
    why_not_ = why;
  }
}

float PrefetchPlanner::first_rank_certainty() const {
  float sum = 0;
  for (int layer = 1; layer < n_trunk_; layer++) sum += calibration_->Certainty(layer, 1, 0);
  return n_trunk_ > 1 ? sum / static_cast<float>(n_trunk_ - 1) : 0;
}

// A decode step is judged when the next one begins.
void PrefetchPlanner::CountStep() {
  const StoreCounts now = store_->counts();
  if (decoding_ && layer_ended_ > step_began_) {
    const uint64_t wall_ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(layer_ended_ - step_began_).count();
    governor_->OnStep(wall_ns, now.misses - counted_.misses,
                      now.prefetch_useful_bytes - counted_.prefetch_useful_bytes,
                      now.prefetch_wasted_bytes - counted_.prefetch_wasted_bytes, decoded_tokens_);
  } else if (!decoding_) {
    governor_->OnBatch(now.prefetch_useful_bytes - counted_.prefetch_useful_bytes,
                       now.prefetch_wasted_bytes - counted_.prefetch_wasted_bytes);
  }
  counted_ = now;
}

void PrefetchPlanner::BeginLayer(const LayerStep& step, bool decode) {
  const bool fresh = step.layer() <= last_layer_ || last_layer_ < 0;
  if (beside_) {
    counted_ = store_->counts();
    beside_ = false;
  }
  if (last_layer_ >= 0 && (fresh || !decoding_)) CountStep();
  if (fresh) {
    step_began_ = Clock::now();
    for (Prediction& prediction : predictions_) {
      prediction.tokens.clear();
      prediction.n_takers.clear();
    }
  }
  if (fresh) {
    store_->ShareReserved(governor_->lost());
    decoding_ = decode;
    decoded_tokens_ = step.n_tokens();
  } else if (!decoding_ && step.layer() + 1 == n_trunk_) {
    last_layer_takes_one_ = step.n_tokens() == 1 && last_tokens_ > 1;
  }
  last_layer_ = step.layer();
  last_tokens_ = step.n_tokens();
  planned_ = false;
  plan_.wanted.clear();
  for (int distance = 1; distance <= Calibration::kMaxDistance; distance++) {
    Judge(step, distance, &predictions_[step.layer() * Calibration::kMaxDistance + distance - 1]);
  }
}

void PrefetchPlanner::Judge(const LayerStep& step, int distance, Prediction* made) {
  const bool as_expected = made->n_tokens == step.n_tokens() && step.k() == n_used_;
  for (size_t i = 0; i < made->tokens.size() && as_expected; i++) {
    calibration_->Observe(step.layer(), distance, &made->ranked[i * calibration_->n_ranked()],
                          step.ids().data() + static_cast<size_t>(made->tokens[i]) * n_used_);
  }
  if (!made->n_takers.empty() && as_expected) {
    taken_.assign(made->n_takers.size(), false);
    for (int64_t i = 0; i < static_cast<int64_t>(step.n_tokens()) * step.k(); i++)
      taken_[step.ids()[i]] = true;
    for (size_t e = 0; e < made->n_takers.size(); e++)
      calibration_->ObserveBatch(distance, made->n_takers[e], taken_[e]);
  }
  made->tokens.clear();
  made->n_takers.clear();
}

void PrefetchPlanner::EndLayer() {
  layer_ended_ = Clock::now();
}

void PrefetchPlanner::Beside() {
  if (last_layer_ >= 0) CountStep();
  last_layer_ = -1;
  beside_ = true;
}

bool PrefetchPlanner::Predictable(int layer, int target) const {
  return readable_ && target < n_trunk_ && routers_[target].weight != nullptr &&
         routers_[layer].weight != nullptr && routers_[target].weight->ne[0] == here_.weight->ne[0];
}

void PrefetchPlanner::Plan(const LayerStep& step, const uint16_t* rest, size_t n_rest,
                           ggml_backend_t cpu) {
  const int layer = step.layer(), n_layers = n_trunk_;
  const bool stream = !decoding_ && step.n_tokens() >= kStreamTokens;
  if (!stream && decoding_) {
    governor_->OnReads(store_->last_read_bytes(), store_->last_read_ns());
    governor_->OnWindow(store_->idle_window_ns());
  }
  if (!planned_) {
    planned_ = true;
    const auto start = Clock::now();
    const float share =
        static_cast<float>(step.experts().size()) / static_cast<float>((*layers_)[layer].n_experts);
    here_ = routers_[layer];
    readable_ = here_.weight != nullptr && !step.ids().empty();
    if (readable_) {
      // The router sees what the layer's own products see, as was learned: so that is what is read,
      // also where the graph that runs has a copy of it and no router.
      here_.input = step.input();
      readable_ = here_.input->type == GGML_TYPE_F32 && here_.input->nb[0] == sizeof(float) &&
                  here_.input->ne[1] == 1 && here_.input->ne[2] == step.n_tokens() &&
                  InHostMemory(here_.input);
    }
    plan_.priority = stream ? PrefetchPriority::kPrompt : PrefetchPriority::kToken;
    if (stream && governor_->batch_reads()) {
      for (int distance = 1; distance <= Calibration::kMaxDistance; distance++) {
        if (layer + distance >= n_layers) break;
        if (Predictable(layer, layer + distance)) {
          Predict(step, distance, kStreamCertainty, cpu);
        } else if (share >= kWholeLayer) {
          // Not the last layer, where it takes the experts of one token.
          if (layer + distance + 1 < n_layers || !last_layer_takes_one_)
            WantWhole(layer + distance);
        }
      }
      std::stable_partition(
          plan_.wanted.begin(), plan_.wanted.end(),
          [](const PrefetchRequest& request) { return request.certainty >= kNearlySure; });
    } else if (!stream && governor_->decode_predicts() && Predictable(layer, layer + 1)) {
      Predict(step, 1, governor_->NeededCertainty(), cpu);
      if (!governor_->decode_reads()) plan_.wanted.clear();
    }
    predict_ns_ +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  }
  if (n_rest == 0 || !governor_->batch_reads()) {
    store_->Prefetch(plan_);
    return;
  }
  PrefetchPlan with_rest;
  with_rest.priority = PrefetchPriority::kPrompt;
  for (size_t i = 0; i < n_rest; i++) with_rest.wanted.push_back({layer, rest[i]});
  with_rest.wanted.insert(with_rest.wanted.end(), plan_.wanted.begin(), plan_.wanted.end());
  store_->Prefetch(with_rest);
}

void PrefetchPlanner::WantWhole(int layer) {
  for (int e = 0; e < (*layers_)[layer].n_experts; e++) {
    plan_.wanted.push_back({layer, static_cast<uint16_t>(e)});
  }
}

void PrefetchPlanner::Rescale(const RouterChain& router, const std::vector<int>& tokens) {
  const size_t n_embd = static_cast<size_t>(here_.weight->ne[0]);
  const auto* from = here_.norm != nullptr ? static_cast<const float*>(here_.norm->data) : nullptr;
  const auto* to = router.norm != nullptr ? static_cast<const float*>(router.norm->data) : nullptr;
  activations_.resize(tokens.size() * n_embd);
  for (size_t i = 0; i < tokens.size(); i++) {
    const auto* x = reinterpret_cast<const float*>(static_cast<const char*>(here_.input->data) +
                                                   tokens[i] * here_.input->nb[2]);
    float* out = &activations_[i * n_embd];
    if (from == nullptr || to == nullptr) {
      std::copy(x, x + n_embd, out);
      continue;
    }
    // The same normed stream, scaled as the other layer does.
    for (size_t j = 0; j < n_embd; j++) out[j] = from[j] != 0 ? x[j] * (to[j] / from[j]) : 0;
  }
}

bool PrefetchPlanner::Multiply(const RouterChain& router, int n_tokens, ggml_backend_t cpu) {
  const int64_t n_embd = router.weight->ne[0], n_experts = router.weight->ne[1];
  scores_.resize(static_cast<size_t>(n_tokens) * n_experts);
  if (n_tokens == 1 && router.weight->type == GGML_TYPE_F32) {
    // A graph's threads take longer to wake than this takes.
    for (int64_t e = 0; e < n_experts; e++) {
      const char* row = static_cast<const char*>(router.weight->data) + e * router.weight->nb[1];
      scores_[e] = Dot(reinterpret_cast<const float*>(row), activations_.data(), n_embd);
    }
    return true;
  }
  graph_memory_.resize(4 * ggml_tensor_overhead() + ggml_graph_overhead_custom(kMostNodes, false) +
                       1024);
  ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
  ggml_tensor* input = ggml_new_tensor_2d(context, GGML_TYPE_F32, n_embd, n_tokens);
  input->data = activations_.data();
  ggml_tensor* scores = ggml_mul_mat(context, const_cast<ggml_tensor*>(router.weight), input);
  scores->data = scores_.data();
  ggml_cgraph* graph = ggml_new_graph_custom(context, kMostNodes, false);
  ggml_build_forward_expand(graph, scores);
  const ggml_status status = ggml_backend_graph_compute(cpu, graph);
  ggml_free(context);
  return status == GGML_STATUS_SUCCESS;
}

// Appends the experts of the layer `distance` ahead that some token takes with a probability of at
// least `least`.
void PrefetchPlanner::Predict(const LayerStep& step, int distance, float least,
                              ggml_backend_t cpu) {
  const int target = step.layer() + distance;
  const int n_experts = (*layers_)[target].n_experts;
  const int n_ranked = std::min(calibration_->n_ranked(), n_experts);
  const int k = std::min(step.k(), n_ranked);
  Prediction& made = predictions_[target * Calibration::kMaxDistance + distance - 1];
  made = Prediction();
  const RouterChain& router = routers_[target];

  // Evenly over the batch, its last token among them; that one alone, where no other goes on.
  const bool one = target + 1 == n_trunk_ && last_layer_takes_one_;
  made.n_tokens = one ? 1 : step.n_tokens();
  const int n = std::min(step.n_tokens(), one ? 1 : distance == 1 ? step.n_tokens() : kFarTokens);
  std::vector<int> tokens(n);
  for (int i = 0; i < n; i++)
    tokens[i] = static_cast<int>(static_cast<int64_t>(i + 1) * step.n_tokens() / n) - 1;
  const bool batch = plan_.priority == PrefetchPriority::kPrompt && !one;
  Rescale(router, tokens);
  if (!Multiply(router, n, cpu)) return;

  doubt_.resize(n_ranked + 1);
  for (int rank = 0; rank <= n_ranked; rank++)
    doubt_[rank] = std::log1p(-calibration_->Certainty(target, distance, rank));
  untouched_.assign(n_experts, 0);
  std::vector<int> n_takers(n_experts, 0);
  order_.resize(n_experts);
  for (int i = 0; i < n; i++) {
    float* scores = &scores_[static_cast<size_t>(i) * n_experts];
    for (const RouterChain::Step& step : router.steps) ApplyStep(step, scores, n_experts);
    std::iota(order_.begin(), order_.end(), uint16_t{0});
    std::partial_sort(order_.begin(), order_.begin() + n_ranked, order_.end(),
                      [scores](uint16_t a, uint16_t b) {
                        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
                      });
    for (int rank = 0; rank < n_experts; rank++)
      untouched_[order_[rank]] += doubt_[std::min(rank, n_ranked)];
    for (int rank = 0; rank < k; rank++) n_takers[order_[rank]]++;
    if (i >= n - kMostJudged && n_ranked == calibration_->n_ranked()) {
      made.tokens.push_back(one ? 0 : tokens[i]);
      made.ranked.insert(made.ranked.end(), order_.begin(), order_.begin() + n_ranked);
    }
  }
  likely_.clear();
  for (int e = 0; e < n_experts; e++) {
    const float taken =
        batch ? calibration_->BatchCertainty(distance, n_takers[e]) : 1 - std::exp(untouched_[e]);
    if (taken >= least) likely_.emplace_back(taken, static_cast<uint16_t>(e));
  }
  // Of equal certainty in the order of the file.
  std::sort(likely_.begin(), likely_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  for (const auto& [certainty, expert] : likely_)
    plan_.wanted.push_back({target, expert, certainty});
  if (batch) made.n_takers = std::move(n_takers);
}

}  // namespace remoe

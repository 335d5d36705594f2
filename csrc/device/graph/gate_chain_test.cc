// How the weights of chosen experts are followed off a graph, and made again.
#include "device/graph/gate_chain.h"

#include <cmath>

#include "device/graph/gate_notes.h"
#include "device/testing/small_moe.h"

namespace remoe {
namespace {

using testing::SmallMoe;
using Kind = GateChain::Step::Kind;

constexpr int kUsed = 2, kTokens = 3;

// A layer as llama.cpp builds it, up to the multiplication by the weights; nothing is computed.
struct Layer {
  explicit Layer(const SmallMoe& moe) : n_experts(moe.shape.n_experts) {
    context = ggml_init({size_t{1} << 20, nullptr, true});
    ggml_tensor* input = ggml_new_tensor_2d(context, GGML_TYPE_F32, moe.shape.n_embd, kTokens);
    ggml_tensor* router = ggml_new_tensor_2d(context, GGML_TYPE_F32, moe.shape.n_embd, n_experts);
    logits = ggml_mul_mat(context, router, input);
    probs = ggml_soft_max(context, logits);
    ids = ggml_argsort_top_k(context, probs, kUsed);
    ggml_tensor* rows = ggml_new_tensor_3d(context, GGML_TYPE_F32, moe.shape.n_ff, kUsed, kTokens);
    down = ggml_mul_mat_id(context, ggml_get_tensor(moe.ours, "blk.0.ffn_down_exps.weight"), rows,
                           ids);
  }
  ~Layer() { ggml_free(context); }
  ggml_tensor* Gathered(ggml_tensor* values) const {
    return ggml_get_rows(context, ggml_reshape_3d(context, values, 1, n_experts, kTokens), ids);
  }
  ggml_tensor* Flat(ggml_tensor* weights) const {
    return ggml_reshape_2d(context, weights, kUsed, kTokens);
  }
  ggml_tensor* Weighed(ggml_tensor* weights) const {
    return ggml_mul(context, down, ggml_reshape_3d(context, weights, 1, kUsed, kTokens));
  }
  const int n_experts;
  ggml_context* context;
  ggml_tensor *logits, *probs, *ids, *down;
};

// The weights that a chain makes of two values.
std::vector<float> Made(const GateChain& chain, std::vector<float> values) {
  ggml_context* context = ggml_init({size_t{1} << 20, nullptr, false});
  ggml_tensor* chosen = ggml_new_tensor_2d(context, GGML_TYPE_F32, values.size(), 1);
  std::memcpy(chosen->data, values.data(), values.size() * sizeof(float));
  ggml_tensor* made = chain.Build(context, chosen);
  ggml_cgraph* graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, made);
  ggml_backend_t cpu = cpu::NewBackend();
  cpu::SetThreads(cpu, 1);
  CHECK(ggml_backend_graph_compute(cpu, graph) == GGML_STATUS_SUCCESS);
  ggml_backend_free(cpu);
  std::memcpy(values.data(), made->data, values.size() * sizeof(float));
  ggml_free(context);
  return values;
}

bool Follow(const ggml_tensor* node, GateChain* chain, std::string* why) {
  CHECK(WeighsExperts(node, chain));
  return FollowGate(node, chain, why);
}

TEST(PlainWeightsAreTheRoutersValues) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  GateChain chain;
  std::string why;
  CHECK(Follow(layer.Weighed(layer.Gathered(layer.probs)), &chain, &why));
  CHECK(chain.values == layer.probs && chain.product == layer.down);
  CHECK(chain.steps.empty() && !chain.of_logits());
  CHECK(Made(chain, {0.5f, 0.25f}) == std::vector<float>({0.5f, 0.25f}));
}

TEST(SharesOfTheSumAndScalesAreMadeAgain) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  ggml_tensor* flat = layer.Flat(layer.Gathered(layer.probs));
  ggml_tensor* sum =
      ggml_clamp(layer.context, ggml_sum_rows(layer.context, flat), 6.1e-5f, INFINITY);
  ggml_tensor* shares = ggml_div(layer.context, flat, sum);
  GateChain chain;
  std::string why;
  CHECK(Follow(layer.Weighed(ggml_scale(layer.context, shares, 2.5f)), &chain, &why));
  CHECK_EQ(chain.steps.size(), 2u);
  CHECK(chain.steps[0].kind == Kind::kShare && chain.steps[1].kind == Kind::kScale);
  CHECK(Made(chain, {0.3f, 0.1f, 0.1f}) == std::vector<float>({1.5f, 0.5f, 0.5f}));
  // Of fewer experts, each has more.
  CHECK(Made(chain, {0.3f}) == std::vector<float>({2.5f}));
}

TEST(ASoftmaxOverTheChosenComparesByDifferences) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  ggml_tensor* flat = layer.Flat(layer.Gathered(layer.logits));
  GateChain chain;
  std::string why;
  CHECK(Follow(layer.Weighed(ggml_soft_max(layer.context, flat)), &chain, &why));
  CHECK(chain.of_logits() && chain.values == layer.logits);
  CHECK(Made(chain, {7}) == std::vector<float>({1}));
}

TEST(WhatCannotBeFollowedIsNamed) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  GateChain chain;
  std::string why;
  ggml_tensor* weights = layer.Gathered(layer.probs);
  CHECK(!Follow(layer.Weighed(ggml_sqr(layer.context, weights)), &chain, &why));
  CHECK(why.find("SQR") != std::string::npos);
  // Shares of another sum are none.
  ggml_tensor* other = ggml_sum_rows(layer.context, layer.Flat(layer.Gathered(layer.logits)));
  ggml_tensor* odd = ggml_div(layer.context, layer.Flat(weights), other);
  CHECK(!Follow(layer.Weighed(odd), &chain, &why) && why.find("DIV") != std::string::npos);
}

TEST(FactorsOfTheFileAreNoWeights) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  ggml_tensor* factors = ggml_new_tensor_2d(layer.context, GGML_TYPE_F32, layer.n_experts, kTokens);
  GateChain chain;
  std::string why;
  CHECK(!Follow(layer.Weighed(layer.Gathered(factors)), &chain, &why) && why.empty());
  CHECK(!WeighsExperts(ggml_mul(layer.context, layer.probs, layer.probs), &chain));
}

TEST(NotesAreFoundByTheIds) {
  const SmallMoe moe(SmallMoe::Shape{});
  const Layer layer(moe);
  GateNotes notes(2);
  int at = -1;
  CHECK(!notes.WhyNot(2, &at).empty() && at == 0);
  GateChain chain;
  const ggml_tensor* node = layer.Weighed(layer.Gathered(layer.probs));
  CHECK(WeighsExperts(node, &chain));
  notes.Note(node, chain, 0);
  CHECK(notes.Find(layer.ids) != nullptr && notes.Find(layer.probs) == nullptr);
  CHECK(!notes.WhyNot(2, &at).empty() && at == 1);
  CHECK(notes.WhyNot(1, &at).empty());
  notes.Note(node, chain, 1);
  CHECK(notes.WhyNot(2, &at).empty());
  // Experts in memory that the same router chooses would not follow.
  GateNotes::NoteOthers(
      ggml_mul_mat_id(layer.context, ggml_get_tensor(moe.in_memory, "blk.0.ffn_down_exps.weight"),
                      layer.down->src[1], layer.ids));
  CHECK(notes.WhyNot(2, &at).find("not streamed") != std::string::npos);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

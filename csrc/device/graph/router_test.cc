// What is read off a graph: which operations are ours, and how experts were chosen.
#include <cmath>
#include <cstring>

#include "device/graph/ffn_ops.h"
#include "device/graph/router_chain.h"
#include "device/graph/router_scores.h"
#include "device/testing/small_moe.h"

namespace remoe {
namespace {

using testing::SmallMoe;

struct Router {
  explicit Router(bool sigmoid) {
    context = ggml_init({4 << 20, nullptr, true});
    weight = ggml_new_tensor_2d(context, GGML_TYPE_F32, 256, 8);
    buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type());
    input = ggml_new_tensor_2d(context, GGML_TYPE_F32, 256, 3);
    ggml_tensor* logits = ggml_mul_mat(context, weight, input);
    scores = sigmoid ? ggml_sigmoid(context, logits) : ggml_soft_max(context, logits);
    ggml_tensor* ids = ggml_top_k(context, scores, 2);
    ids = ggml_view_2d(context, ggml_argsort(context, scores, GGML_SORT_ORDER_DESC), 2, 3,
                       8 * sizeof(int32_t), 0);
    ggml_tensor* matrix = ggml_new_tensor_3d(context, GGML_TYPE_F32, 256, 16, 8);
    product = ggml_mul_mat_id(context, matrix, ggml_reshape_3d(context, input, 256, 1, 3), ids);
  }
  ~Router() {
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
  }
  ggml_context* context;
  ggml_backend_buffer_t buffer;
  ggml_tensor *weight, *input, *scores, *product;
};

TEST(ARouterIsFollowedFromTheIdsToItsWeights) {
  for (const bool sigmoid : {false, true}) {
    Router router(sigmoid);
    RouterChain chain;
    std::string why;
    CHECK(FollowRouter(router.product, 8, &chain, &why));
    CHECK(chain.weight == router.weight && chain.input == router.input);
    CHECK_EQ(chain.steps.size(), 1u);
    CHECK(chain.steps[0].kind ==
          (sigmoid ? RouterChain::Step::Kind::kSigmoid : RouterChain::Step::Kind::kSoftmax));
    CHECK(RouterScores(router.product) == router.scores);
    CHECK(!FollowRouter(router.product, 9, &chain, &why) && !why.empty());
  }
}

TEST(ChoicesThatAreNoSortAreNotFollowed) {
  Router router(false);
  ggml_tensor* table = ggml_new_tensor_2d(router.context, GGML_TYPE_I32, 2, 3);
  router.product->src[2] = table;
  RouterChain chain;
  std::string why;
  CHECK(!FollowRouter(router.product, 8, &chain, &why));
  CHECK(why.find("sort") != std::string::npos);
  CHECK(RouterScores(router.product) == nullptr);
}

TEST(ProbabilitiesAreReadAsTheyAre) {
  Router router(false);
  std::vector<float> values(24);
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i % 8) / 28;
  router.scores->data = values.data();
  std::vector<float> probs(16);
  ReadProbabilities(router.scores, 1, 3, probs.data());
  CHECK(std::memcmp(probs.data(), &values[8], sizeof(float) * 16) == 0);
  values[9] = -INFINITY;
  ReadProbabilities(router.scores, 1, 3, probs.data());
  CHECK_EQ(probs[1], 0.0f);
}

TEST(TheExpertFfnIsOursAndNothingElse) {
  SmallMoe moe(SmallMoe::Shape{});
  const std::vector<int32_t> ids = moe.Ids(2, 2);
  const std::vector<float> rows = moe.Rows(2);
  const auto ours = moe.Ffn(moe.ours, 0, rows, ids, 2);
  const auto theirs = moe.Ffn(moe.in_memory, 0, rows, ids, 2);
  for (int i = 0; i < ggml_graph_n_nodes(ours->graph); i++) {
    const ggml_tensor* node = ggml_graph_node(ours->graph, i);
    const ggml_tensor* other = ggml_graph_node(theirs->graph, i);
    const FfnOp kind = FfnOpOf(node);
    CHECK_EQ(IsExpertOp(node), kind == FfnOp::kProduct || kind == FfnOp::kElementwise);
    CHECK(!IsExpertOp(other) && ExpertProduct(other) == nullptr);
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

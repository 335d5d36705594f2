// Routers that lie in the memory of a device: noted, copied, and their probabilities read, as they
// would be from a GPU. The device here is a buffer that says that it is not host memory.
#include "device/graph/router_notes.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "device/graph/ggml_abi.h"
#include "testing/check.h"

namespace remoe {
namespace {

constexpr int kEmbd = 256, kExperts = 8, kTokens = 3, kTaken = 2;

// Memory that only ggml_backend_tensor_get() and _set() may touch.
struct DeviceMemory {
  DeviceMemory() {
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "Device"; };
    type.iface.alloc_buffer = [](ggml_backend_buffer_type_t buft, size_t size) {
      ggml_backend_buffer_i functions{};
      functions.free_buffer = [](ggml_backend_buffer_t buffer) { std::free(buffer->context); };
      functions.get_base = [](ggml_backend_buffer_t buffer) { return buffer->context; };
      functions.set_tensor = [](ggml_backend_buffer_t, ggml_tensor* tensor, const void* data,
                                size_t offset, size_t n_bytes) {
        std::memcpy(static_cast<uint8_t*>(tensor->data) + offset, data, n_bytes);
      };
      functions.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor* tensor, void* data,
                                size_t offset, size_t n_bytes) {
        reads++;
        std::memcpy(data, static_cast<const uint8_t*>(tensor->data) + offset, n_bytes);
      };
      return ggml_backend_buffer_init(buft, functions,
                                      std::aligned_alloc(64, (size + 63) / 64 * 64), size);
    };
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) -> size_t { return 64; };
    type.device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    reads = 0;
  }
  ggml_backend_buffer_type type{};
  static int reads;
};
int DeviceMemory::reads = 0;

enum class Gate { kSoftmax, kBiasedSigmoid, kBiasFirst };

// A router's graph, weights and logits in the device's memory.
struct Router {
  explicit Router(Gate gate) {
    weights = ggml_init({1 << 20, nullptr, true});
    weight = ggml_new_tensor_2d(weights, GGML_TYPE_F32, kEmbd, kExperts);
    bias = ggml_new_tensor_1d(weights, GGML_TYPE_F32, kExperts);
    weights_buffer = ggml_backend_alloc_ctx_tensors_from_buft(weights, &memory.type);
    context = ggml_init({4 << 20, nullptr, true});
    input = ggml_new_tensor_2d(context, GGML_TYPE_F32, kEmbd, kTokens);
    product_of_router = logits = ggml_mul_mat(context, weight, input);
    if (gate == Gate::kBiasFirst) logits = ggml_add(context, logits, bias);
    ggml_tensor* scores = logits;
    if (gate == Gate::kSoftmax) scores = ggml_soft_max(context, scores);
    if (gate == Gate::kBiasedSigmoid) {
      scores = ggml_add(context, ggml_sigmoid(context, scores), bias);
    }
    ggml_tensor* ids = ggml_view_2d(context, ggml_argsort(context, scores, GGML_SORT_ORDER_DESC),
                                    kTaken, kTokens, kExperts * sizeof(int32_t), 0);
    ggml_tensor* matrix = ggml_new_tensor_3d(context, GGML_TYPE_F32, kEmbd, 16, kExperts);
    product =
        ggml_mul_mat_id(context, matrix, ggml_reshape_3d(context, input, kEmbd, 1, kTokens), ids);
    buffer = ggml_backend_buft_alloc_buffer(&memory.type, ggml_nbytes(logits));
    ggml_backend_tensor_alloc(buffer, logits, ggml_backend_buffer_get_base(buffer));
    for (int i = 0; i < kExperts * kTokens; i++) {
      values.push_back(std::sin(static_cast<float>(i) * 1.7f));
    }
    ggml_backend_tensor_set(logits, values.data(), 0, ggml_nbytes(logits));
    for (int e = 0; e < kExperts; e++) biases.push_back(0.1f * static_cast<float>(e));
    ggml_backend_tensor_set(bias, biases.data(), 0, ggml_nbytes(bias));
  }
  ~Router() {
    ggml_backend_buffer_free(buffer);
    ggml_backend_buffer_free(weights_buffer);
    ggml_free(context);
    ggml_free(weights);
  }
  DeviceMemory memory;
  ggml_context *weights, *context;
  ggml_backend_buffer_t weights_buffer, buffer;
  ggml_tensor *weight, *bias, *input, *product_of_router, *logits, *product;
  std::vector<float> values, biases;
};

TEST(AProductIsNotedBeforeItsIdsBecomeACopy) {
  for (const Gate gate : {Gate::kSoftmax, Gate::kBiasedSigmoid, Gate::kBiasFirst}) {
    Router router(gate);
    HostCopies copies;
    RouterNotes notes(1, &copies);
    CHECK(notes.Find(router.product) == nullptr);
    notes.Note(0, router.product);
    // What the scheduler does: a leaf that leads to nothing.
    router.product->src[2] = ggml_new_tensor_2d(router.context, GGML_TYPE_I32, kTaken, kTokens);
    const RouterNote* note = notes.Find(router.product);
    CHECK(note != nullptr && note->logits == router.logits);
    CHECK_EQ(copies.n_bytes(), gate == Gate::kBiasedSigmoid ? kExperts * sizeof(float) : 0u);

    const int before = DeviceMemory::reads;
    std::vector<float> probs(kExperts * (kTokens - 1));
    note->ReadProbabilities(1, kTokens, probs.data());
    CHECK_EQ(DeviceMemory::reads, before + 1);  // one small read, however many tokens
    for (int t = 1; t < kTokens; t++) {
      std::vector<float> scores(router.values.begin() + t * kExperts,
                                router.values.begin() + (t + 1) * kExperts);
      float sum = 0;
      for (int e = 0; e < kExperts; e++) {
        if (gate == Gate::kBiasedSigmoid) {
          // Biased scores keep their order through a softmax, sharpened fourfold.
          scores[e] = 4 * (1 / (1 + std::exp(-scores[e])) + router.biases[e]);
        }
        sum += std::exp(scores[e]);
      }
      for (int e = 0; e < kExperts; e++) {
        CHECK(std::fabs(probs[(t - 1) * kExperts + e] - std::exp(scores[e]) / sum) < 1e-5f);
      }
    }
  }
}

TEST(ANewGraphAtTheSameAddressIsNotedAnew) {
  Router router(Gate::kSoftmax);
  HostCopies copies;
  RouterNotes notes(1, &copies);
  notes.Note(0, router.product);
  CHECK(notes.Find(router.product) != nullptr);
  router.product->src[2] = ggml_new_tensor_2d(router.context, GGML_TYPE_I32, kTaken, kTokens);
  notes.Note(0, router.product);  // chosen by a table now
  CHECK(notes.Find(router.product) == nullptr);
}

TEST(AWeightIsCopiedOnceAndStandsForItselfInHostMemory) {
  Router router(Gate::kSoftmax);
  HostCopies copies;
  CHECK_EQ(HostCopies::BytesFor(router.weight), ggml_nbytes(router.weight));
  const ggml_tensor* copy = copies.Of(router.weight);
  CHECK(copy != router.weight && copy->data != router.weight->data);
  CHECK(copies.Of(router.weight) == copy && copies.Of(nullptr) == nullptr);
  CHECK_EQ(copies.n_bytes(), ggml_nbytes(router.weight));
  CHECK(copies.Of(copy) == copy);
  CHECK_EQ(HostCopies::BytesFor(copy), 0u);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

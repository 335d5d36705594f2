#include "device/compute/row_products.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "device/compute/activations.h"
#include "device/graph/cpu_backend.h"

namespace remoe {

namespace {

// Work is shared out in pieces of about this size: small beside a matrix, large beside its start,
// for which nothing was asked ahead.
constexpr int64_t kChunkBytes = 64 << 10;
// Far enough that memory has answered when the row's turn comes, near enough to be in the nearest
// cache still. On two cores, rows of 1152 bytes: 12.3 to 13.6 GB/s at 2 to 5 KiB, 6.3 to 11.7
// without.
constexpr int64_t kFetchBytes = 2048;
constexpr int64_t kLine = 64;

void FetchSoon(const uint8_t* begin, int64_t n_bytes) {
  for (int64_t at = 0; at < n_bytes; at += kLine) __builtin_prefetch(begin + at);
}

}  // namespace

bool RowProducts::Fits(const ggml_tensor& weights) {
  // With it, ggml takes single tokens through its tiles, which round in another order.
  static const bool tiles_forced = std::getenv("GGML_CPU_TILED_MM_FORCE") != nullptr;
  if (tiles_forced) return false;
  const auto* traits = cpu::TypeTraits(weights.type);
  return weights.extra == nullptr && traits->vec_dot != nullptr &&
         ActivationType(weights.type) == traits->vec_dot_type;
}

ggml_tensor* RowProducts::Append(ggml_context* context, ggml_tensor* input) {
  return ggml_custom_4d(context, GGML_TYPE_F32, weights_.ne[1], 1, input->ne[2], 1, &input, 1,
                        &Compute, GGML_N_TASKS_MAX, this);
}

// Every thread converts the few inputs for itself: cheaper than to wait for another.
void RowProducts::Compute(ggml_tensor* result, int /*thread*/, int /*n_threads*/, void* self) {
  auto& job = *static_cast<RowProducts*>(self);
  const ggml_tensor& weights = job.weights_;
  const ggml_tensor& input = *result->src[0];
  const auto* traits = cpu::TypeTraits(weights.type);
  thread_local std::vector<uint8_t> converted;
  const auto* columns = static_cast<const uint8_t*>(input.data);
  if (input.type != traits->vec_dot_type) {
    ConvertRows(traits->vec_dot_type, columns, input.nb[2], input.ne[0], input.ne[2], &converted);
    columns = converted.data();
  }
  const size_t column_bytes = ggml_row_size(traits->vec_dot_type, input.ne[0]);

  const int64_t n_rows = weights.ne[1];
  const int64_t row_bytes = static_cast<int64_t>(weights.nb[1]);
  const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  const int64_t rows_on = std::max<int64_t>(1, kFetchBytes / row_bytes);
  const int64_t chunks = (n_rows + rows_per_chunk - 1) / rows_per_chunk;
  const int64_t n_chunks = chunks * input.ne[2];
  for (int64_t at; (at = job.next_.fetch_add(1, std::memory_order_relaxed)) < n_chunks;) {
    const int64_t pair = at / chunks;
    const int64_t begin = at % chunks * rows_per_chunk;
    const int64_t end = std::min(begin + rows_per_chunk, n_rows);
    const auto* matrix =
        static_cast<const uint8_t*>(weights.data) + job.slots_[pair] * weights.nb[2];
    const uint8_t* column = columns + pair * column_bytes;
    auto* out =
        reinterpret_cast<float*>(static_cast<uint8_t*>(result->data) + pair * result->nb[2]);
    for (int64_t row = begin; row < end; row++) {
      if (row + rows_on < end) FetchSoon(matrix + (row + rows_on) * row_bytes, row_bytes);
      traits->vec_dot(static_cast<int>(input.ne[0]), out + row, 0, matrix + row * row_bytes, 0,
                      column, 0, 1);
    }
  }
}

}  // namespace remoe

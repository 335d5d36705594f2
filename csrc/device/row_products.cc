#include "device/row_products.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "ggml-cpu.h"

namespace remoe {

namespace {

// Work is shared out in pieces of about this size: small beside a matrix, large beside its start,
// for which nothing was asked ahead.
constexpr int64_t kChunkBytes = 64 << 10;
// Far enough that memory has answered when the row's turn comes, near enough to be in the nearest
// cache still. Between 1 and 8 KiB it made no difference; without it, 5 to 50 % of the speed.
constexpr int64_t kAheadBytes = 2048;
constexpr int64_t kLine = 64;

void FetchAhead(const uint8_t* begin, int64_t n_bytes) {
  for (int64_t at = 0; at < n_bytes; at += kLine) __builtin_prefetch(begin + at);
}

// The rows of `input` as the dot product takes them.
const uint8_t* Converted(const ggml_tensor& input, ggml_type type, std::vector<uint8_t>* memory) {
  const auto* data = static_cast<const uint8_t*>(input.data);
  if (input.type == type) return data;
  const ggml_from_float_t from_float = ggml_get_type_traits_cpu(type)->from_float;
  const size_t row_bytes = ggml_row_size(type, input.ne[0]);
  memory->resize(row_bytes * input.ne[2]);
  for (int64_t i = 0; i < input.ne[2]; i++) {
    from_float(reinterpret_cast<const float*>(data + i * input.nb[2]),
               memory->data() + i * row_bytes, input.ne[0]);
  }
  return memory->data();
}

}  // namespace

bool RowProducts::Fits(const ggml_tensor& weights) {
  // With it, ggml takes single tokens through its tiles, which round in another order.
  static const bool tiles_forced = std::getenv("GGML_CPU_TILED_MM_FORCE") != nullptr;
  if (tiles_forced) return false;
  const auto* traits = ggml_get_type_traits_cpu(weights.type);
  return weights.extra == nullptr && traits->vec_dot != nullptr &&
         (traits->vec_dot_type == GGML_TYPE_F32 ||
          ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float != nullptr);
}

RowProducts::RowProducts(const ggml_tensor& weights, const int32_t* slots, int n)
    : weights_(weights),
      slots_(slots),
      n_(n),
      rows_per_chunk_(std::max<int64_t>(1, kChunkBytes / static_cast<int64_t>(weights.nb[1]))),
      rows_ahead_(std::max<int64_t>(1, kAheadBytes / static_cast<int64_t>(weights.nb[1]))) {}

ggml_tensor* RowProducts::Append(ggml_context* context, ggml_tensor* input) {
  return ggml_custom_4d(context, GGML_TYPE_F32, weights_.ne[1], 1, n_, 1, &input, 1, &Compute,
                        GGML_N_TASKS_MAX, this);
}

// Every thread converts the few inputs for itself: cheaper than to wait for another.
void RowProducts::Compute(ggml_tensor* result, int /*thread*/, int /*n_threads*/, void* self) {
  auto& job = *static_cast<RowProducts*>(self);
  const ggml_tensor& weights = job.weights_;
  const ggml_tensor& input = *result->src[0];
  const auto* traits = ggml_get_type_traits_cpu(weights.type);
  thread_local std::vector<uint8_t> memory;
  const uint8_t* columns = Converted(input, traits->vec_dot_type, &memory);
  const size_t column_bytes = ggml_row_size(traits->vec_dot_type, input.ne[0]);

  const int64_t n_rows = weights.ne[1];
  const int64_t row_bytes = static_cast<int64_t>(weights.nb[1]);
  const int64_t chunks = (n_rows + job.rows_per_chunk_ - 1) / job.rows_per_chunk_;
  for (int64_t at; (at = job.next_.fetch_add(1, std::memory_order_relaxed)) < chunks * job.n_;) {
    const int64_t pair = at / chunks;
    const int64_t begin = at % chunks * job.rows_per_chunk_;
    const int64_t end = std::min(begin + job.rows_per_chunk_, n_rows);
    const auto* matrix =
        static_cast<const uint8_t*>(weights.data) + job.slots_[pair] * weights.nb[2];
    const uint8_t* column = columns + pair * column_bytes;
    auto* out =
        reinterpret_cast<float*>(static_cast<uint8_t*>(result->data) + pair * result->nb[2]);
    for (int64_t row = begin; row < end; row++) {
      const uint8_t* ahead = matrix + (row + job.rows_ahead_) * row_bytes;
      if (row + job.rows_ahead_ < end) FetchAhead(ahead, row_bytes);
      traits->vec_dot(static_cast<int>(input.ne[0]), out + row, 0, matrix + row * row_bytes, 0,
                      column, 0, 1);
    }
  }
}

}  // namespace remoe

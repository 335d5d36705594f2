#include "device/requantise.h"

#include <algorithm>
#include <cctype>

#include "base/format.h"
#include "ggml.h"

namespace remoe {

namespace {

// What llama.cpp's own quantiser takes where rows are no multiple of 256 values: types of 32.
struct CoarseType {
  ggml_type type, for_other_rows;
};
constexpr CoarseType kTypes[] = {
    {GGML_TYPE_Q2_K, GGML_TYPE_IQ4_NL},    {GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL},
    {GGML_TYPE_Q4_K, GGML_TYPE_Q5_0},      {GGML_TYPE_Q5_K, GGML_TYPE_Q5_1},
    {GGML_TYPE_Q6_K, GGML_TYPE_Q8_0},      {GGML_TYPE_IQ2_S, GGML_TYPE_IQ4_NL},
    {GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ4_NL}, {GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL},
    {GGML_TYPE_IQ4_XS, GGML_TYPE_IQ4_NL},  {GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_NL},
    {GGML_TYPE_Q4_0, GGML_TYPE_Q4_0},      {GGML_TYPE_Q4_1, GGML_TYPE_Q4_1},
    {GGML_TYPE_Q5_0, GGML_TYPE_Q5_0},      {GGML_TYPE_Q5_1, GGML_TYPE_Q5_1},
    {GGML_TYPE_Q8_0, GGML_TYPE_Q8_0},
};

std::string Upper(const char* name) {
  std::string upper(name);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

}  // namespace

Result<uint32_t> CoarseTypeFor(const std::string& name, int64_t n_per_row) {
  std::string known;
  for (const CoarseType& each : kTypes) {
    const std::string its_name = Upper(ggml_type_name(each.type));
    known += (known.empty() ? "" : ", ") + its_name;
    if (its_name != Upper(name.c_str())) continue;
    for (const ggml_type type : {each.type, each.for_other_rows}) {
      if (n_per_row % ggml_blck_size(type) == 0) return static_cast<uint32_t>(type);
    }
    return Status(Code::kNotSupported,
                  Format("rows of %lld weights are no multiple of a block of %s",
                         static_cast<long long>(n_per_row), its_name.c_str()));
  }
  return Status(Code::kInvalidArgument, Format("no type '%s' to requantise to; there are: %s",
                                               name.c_str(), known.c_str()));
}

Status Requantise(uint32_t from, const uint8_t* bytes, uint32_t to, int64_t n_rows,
                  int64_t n_per_row, std::vector<uint8_t>* out) {
  const auto source = static_cast<ggml_type>(from), target = static_cast<ggml_type>(to);
  const auto* traits = ggml_get_type_traits(source);
  std::vector<float> values(static_cast<size_t>(n_rows * n_per_row));
  if (source == GGML_TYPE_F32) {
    std::copy_n(bytes, values.size() * sizeof(float), reinterpret_cast<uint8_t*>(values.data()));
  } else if (traits->to_float != nullptr) {
    traits->to_float(bytes, values.data(), n_rows * n_per_row);
  } else {
    return Status(Code::kNotSupported, Format("%s cannot be decoded", ggml_type_name(source)));
  }
  out->resize(ggml_row_size(target, n_per_row) * n_rows);
  // Given weights, also equal ones, ggml looks for the scales with the least error.
  const std::vector<float> equal(static_cast<size_t>(n_per_row), 1.0f);
  ggml_quantize_chunk(target, values.data(), out->data(), 0, n_rows, n_per_row, equal.data());
  if (ggml_validate_row_data(target, out->data(), out->size())) return Status::Ok();
  return Status(Code::kCorrupt, "the weights are no finite numbers");
}

}  // namespace remoe

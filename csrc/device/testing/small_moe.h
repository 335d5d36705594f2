// SmallMoe: a model of a few layers for tests of the device: its file, the streamed model over it,
// its weights once as ours and once in memory, and the graphs of its expert FFNs.
//
// Everything is made from a seed, so that a failure comes again. Graphs over the weights in memory
// give what is expected, by ggml's own CPU backend.
//
// Owned by a test, and used in its thread but for Ffn() and Expected(), which any may call.
#ifndef REMOE_DEVICE_TESTING_SMALL_MOE_H_
#define REMOE_DEVICE_TESTING_SMALL_MOE_H_

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/graph/cpu_backend.h"
#include "device/streamed_model.h"
#include "ggml-alloc.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe::testing {

struct SmallMoe {
  struct Shape {
    ggml_type type = GGML_TYPE_Q8_0;
    int n_layers = 2, n_experts = 8, n_embd = 256, n_ff = 256;
    bool merged = false;  // gate and up in one matrix
  };
  // An expert FFN over the tokens of a batch, and where its result is.
  struct Graph {
    ggml_context* context = nullptr;
    ggml_cgraph* graph = nullptr;
    ggml_tensor* input = nullptr;  // [n_embd, 1, n_tokens]
    ggml_tensor* ids = nullptr;    // [k, n_tokens], a strided view
    ggml_tensor* result = nullptr;
    ~Graph() { ggml_free(context); }
    std::vector<float> values() const {
      const auto* data = static_cast<const float*>(result->data);
      return std::vector<float>(data, data + ggml_nelements(result));
    }
  };

  // A file and the generator after it. Drawing takes far longer than what is tested: once for each.
  struct Drawn {
    std::string bytes;
    std::mt19937 random;
  };
  static const Drawn& Draw(const Shape& shape, int seed) {
    static std::map<std::array<int, 7>, Drawn> all;
    const std::array<int, 7> key = {
        shape.type, shape.n_layers, shape.n_experts, shape.n_embd, shape.n_ff, shape.merged, seed};
    const auto found = all.find(key);
    if (found != all.end()) return found->second;
    Drawn& drawn = all[key];
    drawn.random.seed(seed);
    GgufWriter writer;
    writer.String("general.architecture", "olmoe");
    writer.U32("olmoe.expert_used_count", 2);
    const uint64_t e = shape.n_embd, f = shape.n_ff, n = shape.n_experts;
    const auto add = [&](const std::string& name, uint64_t ne0, uint64_t ne1) {
      writer.Add(name, shape.type, {ne0, ne1, n}, ggml_row_size(shape.type, ne0) * ne1 * n);
    };
    for (int l = 0; l < shape.n_layers; l++) {
      const std::string block = "blk." + std::to_string(l) + ".ffn_";
      if (shape.merged) {
        add(block + "gate_up_exps.weight", e, 2 * f);
      } else {
        add(block + "gate_exps.weight", e, f);
        add(block + "up_exps.weight", e, f);
      }
      add(block + "down_exps.weight", f, e);
    }
    drawn.bytes = writer.Bytes();
    // Weights that are numbers, in place of the writer's pattern.
    TemporaryFolder folder;
    Result<ModelFile> file = ModelFile::Open(folder.Write("m.gguf", drawn.bytes));
    CHECK_OK(file.status());
    std::normal_distribution<float> draw(0, 0.1f);
    for (const Tensor& tensor : file.value().tensors()) {
      const int64_t n_rows = static_cast<int64_t>(tensor.ne[1] * tensor.ne[2]);
      std::vector<float> values(tensor.ne[0] * n_rows);
      for (float& value : values) value = draw(drawn.random);
      ggml_quantize_chunk(shape.type, values.data(), drawn.bytes.data() + tensor.offset, 0, n_rows,
                          tensor.ne[0], nullptr);
    }
    return drawn;
  }

  explicit SmallMoe(const Shape& shape, int seed = 1) : shape(shape) {
    const Drawn& drawn = Draw(shape, seed);
    random = drawn.random;
    bytes = drawn.bytes;
    const std::string path = folder.Write("m.gguf", bytes);
    LoadOptions options;
    options.reader.backend = "pread";
    options.reader.depth = 2;
    options.repack = false;
    Result<std::unique_ptr<StreamedModel>> opened = StreamedModel::Open(path, options);
    CHECK_OK(opened.status());
    model = std::move(opened.value());
    ours = ggml_init({ggml_tensor_overhead() * 64, nullptr, true});
    in_memory = ggml_init({ggml_tensor_overhead() * 64, nullptr, true});
    for (const Tensor& tensor : model->file().tensors()) {
      for (ggml_context* context : {ours, in_memory}) {
        ggml_tensor* made =
            ggml_new_tensor_3d(context, shape.type, tensor.ne[0], tensor.ne[1], tensor.ne[2]);
        ggml_set_name(made, tensor.name.c_str());
        if (context == in_memory) made->data = bytes.data() + tensor.offset;
      }
    }
    buffer = ggml_backend_alloc_ctx_tensors_from_buft(ours, model->buffer_type());
    CHECK(buffer != nullptr);
  }
  ~SmallMoe() {
    ggml_backend_buffer_free(buffer);
    ggml_free(ours);
    ggml_free(in_memory);
  }

  Status Attach(int n_slots, const std::string& policy = "lru",
                PrefetchMode prefetch = PrefetchMode::kOff) {
    AttachOptions options;
    options.n_slots = n_slots;
    options.policy = policy;
    options.prefetch = prefetch;
    return model->Attach(options);
  }

  // The FFN of a layer over `context`'s weights. ids: [n_tokens][k].
  std::unique_ptr<Graph> Ffn(ggml_context* weights, int layer, const std::vector<float>& rows,
                             const std::vector<int32_t>& ids, int k) const {
    auto made = std::make_unique<Graph>();
    const int n_tokens = static_cast<int>(ids.size()) / k;
    made->context = ggml_init({size_t{16} << 20, nullptr, false});
    ggml_context* context = made->context;
    made->input = ggml_new_tensor_3d(context, GGML_TYPE_F32, shape.n_embd, 1, n_tokens);
    std::memcpy(made->input->data, rows.data(), rows.size() * sizeof(float));
    ggml_tensor* sorted = ggml_new_tensor_2d(context, GGML_TYPE_I32, shape.n_experts + 1, n_tokens);
    made->ids = ggml_view_2d(context, sorted, k, n_tokens, sorted->nb[1], 0);
    for (int t = 0; t < n_tokens; t++) {
      for (int i = 0; i < k; i++) {
        static_cast<int32_t*>(sorted->data)[t * (shape.n_experts + 1) + i] = ids[t * k + i];
      }
    }
    const std::string block = "blk." + std::to_string(layer) + ".ffn_";
    const auto product = [&](const std::string& name, ggml_tensor* input) {
      ggml_tensor* matrix = ggml_get_tensor(weights, (block + name + "_exps.weight").c_str());
      return ggml_mul_mat_id(context, matrix, input, made->ids);
    };
    ggml_tensor* hidden;
    if (shape.merged) {
      hidden = ggml_swiglu(context, product("gate_up", made->input));
    } else {
      ggml_tensor* up = product("up", made->input);
      hidden = ggml_swiglu_split(context, product("gate", made->input), up);
    }
    made->result = product("down", hidden);
    made->graph = ggml_new_graph(context);
    ggml_build_forward_expand(made->graph, made->result);
    return made;
  }

  // What the CPU backend gives with every weight in memory.
  std::vector<float> Expected(int layer, const std::vector<float>& rows,
                              const std::vector<int32_t>& ids, int k) const {
    ggml_backend_t cpu = cpu::NewBackend();
    cpu::SetThreads(cpu, 1);
    const auto graph = Ffn(in_memory, layer, rows, ids, k);
    CHECK(ggml_backend_graph_compute(cpu, graph->graph) == GGML_STATUS_SUCCESS);
    ggml_backend_free(cpu);
    return graph->values();
  }

  std::vector<float> Rows(int n_tokens) {
    std::normal_distribution<float> draw(0, 1);
    std::vector<float> rows(static_cast<size_t>(n_tokens) * shape.n_embd);
    for (float& value : rows) value = draw(random);
    return rows;
  }
  // k distinct experts for each token.
  std::vector<int32_t> Ids(int n_tokens, int k) {
    std::vector<int32_t> all(shape.n_experts), ids;
    for (int e = 0; e < shape.n_experts; e++) all[e] = e;
    for (int t = 0; t < n_tokens; t++) {
      std::shuffle(all.begin(), all.end(), random);
      ids.insert(ids.end(), all.begin(), all.begin() + k);
    }
    return ids;
  }

  const Shape shape;
  std::mt19937 random;
  TemporaryFolder folder;
  std::string bytes;  // of the file
  std::unique_ptr<StreamedModel> model;
  ggml_context* ours = nullptr;
  ggml_context* in_memory = nullptr;
  ggml_backend_buffer_t buffer = nullptr;
};

}  // namespace remoe::testing

#endif  // REMOE_DEVICE_TESTING_SMALL_MOE_H_

// The executor, its steps and its sources, on small graphs: bit by bit what the CPU backend gives
// with every weight in memory.
#include "device/compute/executor.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>

#include "device/testing/small_moe.h"
#include "trace/trace_file.h"

namespace remoe {
namespace {

using testing::SmallMoe;
using Kind = Arrival::Kind;

struct Backend {
  Backend() : cpu(cpu::NewBackend()), executor(cpu) { cpu::SetThreads(cpu, 1); }
  ~Backend() { ggml_backend_free(cpu); }
  ggml_backend_t cpu;
  Executor executor;
};

// Runs a layer's FFN over random tokens; checks that its bits are the CPU backend's.
ggml_status RunLayer(SmallMoe* moe, Executor* executor, int layer, int n_tokens, int k = 2,
                     const std::vector<int32_t>* given = nullptr) {
  const std::vector<float> rows = moe->Rows(n_tokens);
  const std::vector<int32_t> ids = given != nullptr ? *given : moe->Ids(n_tokens, k);
  const auto graph = moe->Ffn(moe->ours, layer, rows, ids, k);
  const ggml_status status = executor->Run(graph->graph);
  if (status == GGML_STATUS_SUCCESS) {
    const std::vector<float> is = graph->values(), wanted = moe->Expected(layer, rows, ids, k);
    CHECK(std::memcmp(is.data(), wanted.data(), wanted.size() * sizeof(float)) == 0);
  }
  // The graph is as it was.
  for (int i = 0; i < ggml_graph_n_nodes(graph->graph); i++) {
    const ggml_tensor* node = ggml_graph_node(graph->graph, i);
    if (node->op == GGML_OP_MUL_MAT_ID) CHECK(node->src[2] == graph->ids);
  }
  return status;
}

ggml_status RunStep(SmallMoe* moe, Executor* executor, int n_tokens) {
  for (int layer = 0; layer < moe->shape.n_layers; layer++) {
    const ggml_status status = RunLayer(moe, executor, layer, n_tokens);
    if (status != GGML_STATUS_SUCCESS) return status;
  }
  return GGML_STATUS_SUCCESS;
}

TEST(EveryCacheGivesTheBitsOfTheCpuBackend) {
  SmallMoe::Shape staged, merged, floats, k_quants;
  staged.n_ff = 96;
  merged.merged = true;
  floats.type = GGML_TYPE_F32;
  k_quants.type = GGML_TYPE_Q4_K;
  for (const SmallMoe::Shape& shape : {SmallMoe::Shape(), staged, merged, floats, k_quants}) {
    for (const int n_slots : {2, 5, 16}) {
      for (const PrefetchMode prefetch : {PrefetchMode::kOff, PrefetchMode::kOn}) {
        SmallMoe moe(shape);
        CHECK_OK(moe.Attach(n_slots, "lru", prefetch));
        Backend backend;
        for (const int n_tokens : {1, 5, 40, 1, 1}) {
          CHECK_EQ(RunStep(&moe, &backend.executor, n_tokens), GGML_STATUS_SUCCESS);
        }
        const StoreCounts counts = moe.model->store()->counts();
        CHECK_EQ(counts.bytes_read, counts.misses * moe.model->layers()[0].expert_bytes());
        CHECK(!moe.model->store()->open());
      }
    }
  }
}

// Several tokens are a prompt unless the step was said to be of so many conversations.
TEST(AStepIsWhatItWasSaidToBe) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(5, "reuse-biased", PrefetchMode::kOn));
  Backend backend;
  const std::string path = moe.folder.Write("t.trace.new", "");
  CHECK_OK(moe.model->StartTrace(path, "", "{}"));
  const std::pair<StepKind, int> steps[] = {{StepKind::kByTokens, 5}, {StepKind::kDecode, 12},
                                            {StepKind::kDecode, 1},   {StepKind::kPrompt, 1},
                                            {StepKind::kPrompt, 12},  {StepKind::kByTokens, 1}};
  for (const auto& [kind, n_tokens] : steps) {
    moe.model->DeclareSteps(kind, n_tokens);
    CHECK_EQ(RunStep(&moe, &backend.executor, n_tokens), GGML_STATUS_SUCCESS);
  }
  CHECK_OK(moe.model->recorder().Stop());
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto trace = ParseTrace(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), path);
  CHECK_OK(trace.status());
  const std::vector<uint8_t> decode = {0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1};  // two layers a step
  CHECK(trace.value().phase == decode);
}

TEST(TwoContextsTakeTurnsOverOneModel) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(4));
  std::vector<std::vector<int32_t>> ids = {moe.Ids(3, 2), moe.Ids(1, 2)};
  std::vector<std::vector<float>> rows = {moe.Rows(3), moe.Rows(1)};
  std::vector<std::thread> threads;
  std::vector<int> wrong(2);
  for (int c = 0; c < 2; c++) {
    threads.emplace_back([&, c] {
      Backend backend;
      for (int i = 0; i < 20; i++) {
        const auto graph = moe.Ffn(moe.ours, i % 2, rows[c], ids[c], 2);
        wrong[c] += backend.executor.Run(graph->graph) != GGML_STATUS_SUCCESS;
        const std::vector<float> wanted = moe.Expected(i % 2, rows[c], ids[c], 2);
        wrong[c] += graph->values() != wanted;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong[0] + wrong[1], 0);
}

TEST(AnExpertThatDoesNotExistIsRefused) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(4));
  Backend backend;
  const std::vector<int32_t> beyond = {1, 8}, negative = {-1, 2};
  for (const auto* ids : {&beyond, &negative}) {
    const auto graph = moe.Ffn(moe.ours, 0, moe.Rows(1), *ids, 2);
    CHECK_EQ(backend.executor.Run(graph->graph), GGML_STATUS_FAILED);
    CHECK(moe.model->failure().Take().code() == Code::kCorrupt);
  }
  CHECK_EQ(RunStep(&moe, &backend.executor, 3), GGML_STATUS_SUCCESS);
}

TEST(AFailedReadEndsItsStepAndNoOther) {
  for (const PrefetchMode prefetch : {PrefetchMode::kOff, PrefetchMode::kOn}) {
    SmallMoe moe(SmallMoe::Shape{});
    CHECK_OK(moe.Attach(6, "lru", prefetch));
    Backend backend;
    for (const int n_tokens : {1, 12}) {
      for (int matrix = 0; matrix < 3; matrix++) {
        // Not its first and last page, which other matrices share.
        const ExpertMatrix& broken = moe.model->layers()[1].matrices[matrix];
        FaultPlan faults;
        faults.range_file = 0;
        faults.range_offset = broken.offset + kPage;
        faults.range_bytes = broken.expert_bytes * 8 - 2 * kPage;
        moe.model->reader()->SetFaults(faults);
        CHECK_EQ(RunStep(&moe, &backend.executor, n_tokens), GGML_STATUS_FAILED);
        CHECK(moe.model->failure().Take().message().find("layer 1, expert") != std::string::npos);
        moe.model->reader()->SetFaults(FaultPlan());
        CHECK(!moe.model->store()->open());
        moe.model->PrefetchForStart({0, 0, 9, 3, 77});
        moe.model->FinishStart();
        CHECK_EQ(RunStep(&moe, &backend.executor, n_tokens), GGML_STATUS_SUCCESS);
        // Out of the cache again, for the next fault to be met.
        for (int i = 0; i < 4; i++) RunLayer(&moe, &backend.executor, 0, 12);
      }
    }
  }
}

TEST(AnInterruptTakesOutOfATraceTheStepItCutsAndNoOther) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(4));
  Backend backend;
  CHECK_OK(moe.model->StartTrace(moe.folder.path() + "/t.trace", "", "{}"));
  moe.folder.Adopt(moe.folder.path() + "/t.trace");
  CHECK_EQ(RunStep(&moe, &backend.executor, 2), GGML_STATUS_SUCCESS);
  CHECK_EQ(RunStep(&moe, &backend.executor, 1), GGML_STATUS_SUCCESS);
  CHECK_EQ(moe.model->recorder().n_events(), 4u);
  moe.model->interruption().Raise();  // between two steps
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(RunStep(&moe, &backend.executor, 1), GGML_STATUS_ABORTED);
    CHECK_EQ(moe.model->recorder().n_events(), 4u);
  }
  moe.model->interruption().Clear();
  CHECK_EQ(RunLayer(&moe, &backend.executor, 0, 1), GGML_STATUS_SUCCESS);
  CHECK_EQ(moe.model->recorder().n_events(), 5u);
  moe.model->interruption().Raise();  // within one
  CHECK_EQ(RunLayer(&moe, &backend.executor, 1, 1), GGML_STATUS_ABORTED);
  CHECK_EQ(moe.model->recorder().n_events(), 4u);
  moe.model->interruption().Clear();
  CHECK_OK(moe.model->failure().Take());
  CHECK_EQ(RunStep(&moe, &backend.executor, 1), GGML_STATUS_SUCCESS);
  CHECK_EQ(moe.model->recorder().n_events(), 6u);
  CHECK_OK(moe.model->recorder().Stop());
}

TEST(AFailedAttachLeavesAModelThatCanBeAttached) {
  SmallMoe moe(SmallMoe::Shape{});
  Backend backend;
  CHECK_EQ(RunStep(&moe, &backend.executor, 1), GGML_STATUS_FAILED);
  CHECK_EQ(moe.model->PrefetchForStart({1, 2}), 0);
  moe.model->FinishStart();
  CHECK(moe.Attach(1).code() == Code::kBudgetTooSmall);
  CHECK(!moe.Attach(4, "no such policy").ok());
  CHECK(moe.model->store() == nullptr);
  CHECK_OK(moe.Attach(4));
  CHECK(!moe.Attach(4).ok());
  CHECK_EQ(RunStep(&moe, &backend.executor, 1), GGML_STATUS_SUCCESS);
}

TEST(StreamedTensorsGiveTheirTrueBytes) {
  SmallMoe moe(SmallMoe::Shape{});
  for (const Tensor& tensor : moe.model->file().tensors()) {
    std::string is(tensor.n_bytes, '\0');
    ggml_backend_tensor_get(ggml_get_tensor(moe.ours, tensor.name.c_str()), is.data(), 0,
                            tensor.n_bytes);
    CHECK(std::memcmp(is.data(), moe.bytes.data() + tensor.offset, tensor.n_bytes) == 0);
  }
}

// Computes some experts' rows in a thread of its own, from the weights in memory.
class Elsewhere : public ExpertSource {
 public:
  enum class Mode { kAnswers, kFails, kLate, kShort, kHedged };
  Elsewhere(SmallMoe* moe, Mode mode, std::function<bool(uint16_t)> takes)
      : moe_(moe), mode_(mode), takes_(std::move(takes)) {}
  ~Elsewhere() override { Join(); }

  const char* name() const override { return "elsewhere"; }
  void Begin(const Demand& demand, std::vector<bool>* taken) override {
    Join();
    arrivals_ = demand.arrivals;
    ticket_ = demand.ticket;
    layer_ = demand.layer;
    work_.clear();
    for (size_t i = 0; i < demand.experts->size(); i++) {
      const Placement& placement = (*demand.experts)[i];
      CHECK_EQ(placement.slot, kNoSlot);
      if ((*taken)[i] || !takes_(placement.expert)) continue;
      (*taken)[i] = true;
      Work work{placement.expert, demand.rows->n_rows(placement.expert), {}};
      work.rows.resize(work.n_rows * demand.rows->n_in());
      demand.rows->Gather(work.expert, work.rows.data());
      CHECK_EQ(demand.rows->n_out(), moe_->shape.n_embd);
      work_.push_back(std::move(work));
    }
    n_taken += static_cast<int>(work_.size());
    thread_ = std::thread([this] { Compute(); });
  }
  void End() override { ended_ = true; }
  void Join() {
    if (thread_.joinable()) thread_.join();
    ended_ = false;
  }

  int n_taken = 0;
  std::atomic<int> n_refused{0};  // answers that came too late

 private:
  struct Work {
    uint16_t expert;
    int n_rows;
    std::vector<float> rows;
  };
  void Fail(uint16_t expert) {
    Arrival failed;
    failed.kind = Kind::kFailed;
    failed.expert = expert;
    failed.status = Status(Code::kIo, "elsewhere is gone");
    arrivals_->Post(ticket_, std::move(failed));
  }
  void Compute() {
    for (const Work& work : work_) {
      if (mode_ != Mode::kAnswers && mode_ != Mode::kShort) Fail(work.expert);
    }
    for (const Work& work : work_) {
      if (mode_ == Mode::kFails) continue;
      if (mode_ == Mode::kLate) {
        while (!ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the next step has begun
      }
      Arrival rows;
      rows.kind = Kind::kRows;
      rows.expert = work.expert;
      rows.rows =
          moe_->Expected(layer_, work.rows, std::vector<int32_t>(work.n_rows, work.expert), 1);
      if (mode_ == Mode::kShort) rows.rows.pop_back();
      if (!arrivals_->Post(ticket_, std::move(rows))) n_refused++;
    }
  }

  SmallMoe* const moe_;
  const Mode mode_;
  const std::function<bool(uint16_t)> takes_;
  Arrivals* arrivals_ = nullptr;
  Arrivals::Ticket ticket_ = 0;
  int layer_ = 0;
  std::vector<Work> work_;
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

TEST(RowsThatAreComputedElsewhereGiveTheSameBits) {
  using Mode = Elsewhere::Mode;
  for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_K}) {
    for (const Mode mode :
         {Mode::kAnswers, Mode::kFails, Mode::kLate, Mode::kShort, Mode::kHedged}) {
      for (const int all : {0, 1}) {
        SmallMoe::Shape shape;
        shape.type = type;
        SmallMoe moe(shape);
        CHECK_OK(moe.Attach(3));  // so that the rest comes in waves, too
        if (mode == Mode::kHedged) {
          FaultPlan slow;
          slow.delay_us = 300;
          moe.model->reader()->SetFaults(slow);
        }
        auto made = std::make_unique<Elsewhere>(
            &moe, mode, [all](uint16_t expert) { return all == 1 || expert % 2 == 0; });
        Elsewhere* source = made.get();
        moe.model->AddSource(std::move(made));
        Backend backend;
        for (const int n_tokens : {1, 9, 30, 1}) {
          CHECK_EQ(RunStep(&moe, &backend.executor, n_tokens), GGML_STATUS_SUCCESS);
        }
        source->Join();
        CHECK(source->n_taken > 0);
        const StoreCounts counts = moe.model->store()->counts();
        if (mode == Mode::kAnswers && all == 1) CHECK_EQ(counts.misses, 0u);
        if (mode == Mode::kLate) CHECK(source->n_refused > 0);
        CHECK(!moe.model->store()->open());
        CHECK_OK(moe.model->failure().Take());
      }
    }
  }
}

TEST(AStepKnowsWhichPairsCanBeRun) {
  ggml_context* context = ggml_init({1 << 16, nullptr, false});
  ggml_tensor* ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, 2, 3);
  const int32_t chosen[] = {4, 1, 1, 2, 4, 2};
  std::memcpy(ids->data, chosen, sizeof(chosen));
  ggml_tensor product{};
  product.src[2] = ids;
  LayerStep step;
  CHECK(!step.Route(0, 4, &product));
  CHECK(step.Route(0, 6, &product));
  CHECK(step.experts() == (std::vector<uint16_t>{4, 1, 2}));
  const auto arrival = [](Kind kind, uint16_t expert) {
    Arrival made;
    made.kind = kind;
    made.expert = expert;
    if (kind == Kind::kFailed) made.status = Status(Code::kIo, "gone");
    return made;
  };
  step.Send(2);
  step.Place({{4, 7, true, false}, {1, 3, false, false}});
  CHECK_EQ(step.n_awaited(), 2);
  CHECK_OK(step.Take({arrival(Kind::kWeights, 4)}));
  CHECK_EQ(step.Ready().size(), 2u);
  CHECK_EQ(step.Ready().size(), 0u);
  CHECK_OK(step.Take({arrival(Kind::kAllButDown, 1)}));
  CHECK_EQ(step.AllButDown().size(), 2u);
  CHECK_OK(step.Take({arrival(Kind::kFailed, 2)}));  // of who computes elsewhere
  CHECK_EQ(step.n_sent(), 0);
  std::vector<uint16_t> unplaced;
  step.Unplaced(&unplaced);
  CHECK(unplaced == std::vector<uint16_t>{2});
  CHECK(!step.Take({arrival(Kind::kFailed, 1)}).ok());
  CHECK_EQ(step.n_awaited(), 1);
  CHECK_OK(step.Take({arrival(Kind::kWeights, 1)}));
  CHECK_EQ(step.n_awaited(), 0);
  CHECK(!step.all_there());
  ggml_free(context);
}

TEST(OneTokensProductsByRowsAreTheCpuBackends) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(16));
  Backend backend;
  for (int i = 0; i < 6; i++) {
    CHECK_EQ(RunLayer(&moe, &backend.executor, 0, 1, 1 + i), GGML_STATUS_SUCCESS);
  }
  CHECK(moe.model->store()->counts().hits > 0);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Rows that a worker computes, over a real connection: bit by bit what the CPU backend gives, and
// the same answer whatever happens to the worker.
#include <algorithm>
#include <thread>

#include "device/compute/executor.h"
#include "device/compute/recipe_runner.h"
#include "device/testing/small_moe.h"
#include "remote/remote_source.h"
#include "remote/worker_server.h"

namespace remoe {
namespace {

using testing::SmallMoe;

constexpr int kWaitMs = 20000;

struct Backend {
  Backend() : cpu(cpu::NewBackend()), executor(cpu) { cpu::SetThreads(cpu, 1); }
  ~Backend() { ggml_backend_free(cpu); }
  ggml_backend_t cpu;
  Executor executor;
};

// Computes with one bit wrong, from the n-th time on.
class Wrong : public RowComputer {
 public:
  Wrong(RowComputer* right, int from) : right_(right), from_(from) {}
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    return right_->Learn(layer, recipe);
  }
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    const Status status = right_->Compute(recipe, expert, n_rows, rows, out);
    if (++n_ > from_ && status.ok()) reinterpret_cast<uint32_t*>(out->data())[0] ^= 1;
    return status;
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    return right_->Sums(layer, expert);
  }
  std::string Name(int layer, int expert) const override { return right_->Name(layer, expert); }

 private:
  RowComputer* const right_;
  const int from_;
  int n_ = 0;
};

struct Worker {
  // Serves `share` of each layer's experts of the same model.
  Worker(const SmallMoe::Shape& shape, double share, int wrong_from = -1, int seed = 1,
         uint32_t credits = 32)
      : moe(shape, seed) {
    std::vector<ExpertId> wanted;
    const int n = static_cast<int>(shape.n_experts * share + 0.5);
    for (int l = 0; l < shape.n_layers; l++) {
      for (int e = 0; e < n; e++) wanted.push_back(l * shape.n_experts + e);
    }
    AttachOptions options;
    options.n_slots = std::max<int>(1, static_cast<int>(wanted.size()));
    options.policy = "lru";
    options.single_experts = true;
    CHECK_OK(moe.model->Attach(options));
    CHECK_EQ(moe.model->PrefetchForStart(wanted), static_cast<int>(wanted.size()));
    moe.model->FinishStart();
    runner = std::make_unique<RecipeRunner>(moe.model.get(), 1);
    wrong = std::make_unique<Wrong>(runner.get(), wrong_from);
    welcome.identity = IdentityOf(*moe.model, "test", "m");
    welcome.credits = credits;
    welcome.max_rows = 64;
    for (const ExpertId id : wanted) {
      const int layer = static_cast<int>(id) / shape.n_experts;
      const uint16_t expert = static_cast<uint16_t>(id % shape.n_experts);
      welcome.experts.push_back(
          {static_cast<uint32_t>(layer), expert, runner->Sums(layer, expert).value().whole});
    }
    computer = wrong_from >= 0 ? static_cast<RowComputer*>(wrong.get()) : runner.get();
  }
  ~Worker() { Stop(); }
  void Start(uint16_t port = 0) {
    auto made = WorkerServer::Make({"127.0.0.1", port}, nullptr, welcome, computer, nullptr,
                                   WorkerServer::Limits());
    CHECK_OK(made.status());
    server = std::move(made.value());
    thread = std::thread([this] { CHECK_OK(server->Run()); });
  }
  void Stop() {
    if (server != nullptr) server->Stop();
    if (thread.joinable()) thread.join();
    server.reset();
  }
  Address address() const { return {"127.0.0.1", server->port()}; }

  SmallMoe moe;
  std::unique_ptr<RecipeRunner> runner;
  std::unique_ptr<Wrong> wrong;
  RowComputer* computer = nullptr;
  Welcome welcome;
  std::unique_ptr<WorkerServer> server;
  std::thread thread;
};

struct Client {
  Client(const SmallMoe::Shape& shape, const std::vector<Address>& addresses,
         RemoteSource::Settings settings = {}, const std::string& engine = "test", int n_slots = 3)
      : checking(shape), moe(shape) {
    CHECK_OK(moe.Attach(n_slots));
    AttachOptions options;
    options.n_slots = 1;
    options.policy = "lru";
    options.single_experts = true;
    CHECK_OK(checking.model->Attach(options));
    RemoteSource::Local local;
    local.expert_bytes.assign(shape.n_layers, moe.model->layers()[0].expert_bytes());
    local.n_experts = shape.n_experts;
    auto made = RemoteSource::Make(addresses, nullptr, IdentityOf(*moe.model, engine, "m"),
                                   std::make_unique<RecipeRunner>(checking.model.get(), 1), local,
                                   settings);
    CHECK_OK(made.status());
    source = made.value().get();
    moe.model->AddSource(std::move(made.value()));
  }
  // A step over all layers; its bits are the CPU backend's.
  void Step(int n_tokens) {
    for (int layer = 0; layer < moe.shape.n_layers; layer++) {
      const std::vector<float> rows = moe.Rows(n_tokens);
      const std::vector<int32_t> ids = moe.Ids(n_tokens, 2);
      const auto graph = moe.Ffn(moe.ours, layer, rows, ids, 2);
      CHECK_EQ(backend.executor.Run(graph->graph), GGML_STATUS_SUCCESS);
      CHECK(graph->values() == moe.Expected(layer, rows, ids, 2));
    }
  }
  // Shows all layers, and waits until the peers have been proven for them.
  void Prove() {
    Step(1);
    CHECK(source->Await(kWaitMs));
  }
  std::string state() const { return source->peers()[0].peer.state; }
  std::string lines() {
    std::string all;
    for (const PeerLine& line : source->TakeLines()) all += line.text + "\n";
    return all;
  }

  SmallMoe checking;
  SmallMoe moe;
  RemoteSource* source = nullptr;
  Backend backend;
};

TEST(AWorkersRowsAreTheCpuBackendsBits) {
  SmallMoe::Shape merged, floats, k_quants;
  merged.merged = true;
  floats.type = GGML_TYPE_F32;
  k_quants.type = GGML_TYPE_Q4_K;
  for (const SmallMoe::Shape& shape : {SmallMoe::Shape(), merged, floats, k_quants}) {
    for (const double share : {0.0, 0.3, 1.0}) {
      Worker worker(shape, share);
      worker.Start();
      RemoteSource::Settings settings;
      settings.max_tokens = 32;
      settings.audit_every = 3;
      Client client(shape, {worker.address()}, settings);
      client.Prove();
      for (const int n_tokens : {1, 2, 9, 30, 1, 1}) client.Step(n_tokens);
      const RemoteCounts counts = client.source->counts();
      CHECK_EQ(counts.experts > 0, share > 0);
      CHECK_EQ(counts.mismatches, 0u);
      CHECK_EQ(worker.server->counts().answers > 0, share > 0);
    }
  }
}

TEST(AWorkerThatIsStoppedCostsNoAnswer) {
  const SmallMoe::Shape shape;
  Worker worker(shape, 1.0);
  worker.Start();
  const uint16_t port = worker.server->port();
  Client client(shape, {worker.address()});
  client.Prove();
  client.Step(1);
  worker.Stop();
  for (int i = 0; i < 5; i++) client.Step(1);
  CHECK(client.lines().find("does not answer") != std::string::npos);
  // It comes again on the same port, and is used again.
  worker.Start(port);
  const uint64_t before = client.source->counts().experts;
  for (int i = 0; i < 4000 && client.source->counts().experts == before; i++) {
    client.Step(1);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(client.source->counts().experts > before);
}

TEST(NobodyListensIsALineAndNoMore) {
  const SmallMoe::Shape shape;
  Client client(shape, {{"127.0.0.1", 1}});
  client.Prove();
  client.Step(1);
  CHECK(client.lines().find("does not answer") != std::string::npos);
  CHECK_EQ(client.source->counts().asked, 0u);
}

TEST(AnotherProgramAndOtherWeightsAreRefused) {
  const SmallMoe::Shape shape;
  Worker worker(shape, 1.0);
  worker.Start();
  {
    Client client(shape, {worker.address()}, {}, "another");
    client.Prove();
    client.Step(1);
    CHECK(client.lines().find("version of remoe-edge") != std::string::npos);
    CHECK_EQ(client.source->counts().asked, 0u);
  }
  Worker other(shape, 1.0, -1, 2);  // the same shapes, other weights
  other.Start();
  Client client(shape, {other.address()});
  client.Prove();
  client.Step(1);
  CHECK(client.lines().find("are not those of our file") != std::string::npos);
  CHECK_EQ(client.state(), "refused");
}

TEST(AWrongBitIsFoundByTheCanaryOrTheAudit) {
  const SmallMoe::Shape shape;
  {
    Worker worker(shape, 1.0, 3);  // the fourth canary, of nine rows
    worker.Start();
    Client client(shape, {worker.address()});
    client.Prove();
    client.Step(1);
    CHECK(client.lines().find("computes 9 rows") != std::string::npos);
    CHECK_EQ(client.source->counts().asked, 0u);
  }
  Worker worker(shape, 1.0, 5);  // after the canaries
  worker.Start();
  RemoteSource::Settings settings;
  settings.audit_every = 1;
  settings.hedge = false;  // a slow machine's late answers count, too
  Client client(shape, {worker.address()}, settings);
  client.Prove();
  const std::vector<float> rows = client.moe.Rows(1);
  for (int i = 0; i < 50000 && client.state() != "refused"; i++) {
    const auto graph = client.moe.Ffn(client.moe.ours, 0, rows, client.moe.Ids(1, 2), 2);
    CHECK_EQ(client.backend.executor.Run(graph->graph), GGML_STATUS_SUCCESS);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK_EQ(client.state(), "refused");
  CHECK(client.source->counts().mismatches > 0);
  for (int i = 0; i < 6; i++) client.Step(1);
}

TEST(BeyondItsCreditsAWorkerIsNotAsked) {
  const SmallMoe::Shape shape;
  Worker worker(shape, 1.0, -1, 1, 1);
  worker.Start();
  Client client(shape, {worker.address()});
  client.Prove();
  for (int i = 0; i < 10; i++) client.Step(4);
  CHECK(client.source->counts().experts > 0);
  CHECK_EQ(worker.server->counts().busy, 0u);
}

// Stands between an engine and a worker, and spoils what the worker says after so many bytes.
class Spoiler {
 public:
  enum class Mode { kFlip, kCut, kTwice, kStall };
  Spoiler(const Address& worker, Mode mode, size_t clean)
      : worker_(worker), mode_(mode), clean_(clean) {
    auto made = ListenTcp({"127.0.0.1", 0});
    CHECK_OK(made.status());
    listener_ = std::move(made.value());
    thread_ = std::thread([this] { Run(); });
  }
  ~Spoiler() {
    ending_ = true;
    thread_.join();
  }
  Address address() const { return {"127.0.0.1", listener_->port()}; }
  int n_spoiled() const { return n_spoiled_; }

 private:
  void Run() {
    while (!ending_) {
      auto engine = listener_->Accept();
      if (engine.ok() && engine.value() != nullptr) Forward(engine.value().get());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  void Forward(Channel* engine) {
    auto worker = ConnectTcp(worker_, 1000);
    if (!worker.ok()) return;
    std::vector<uint8_t> bytes(1 << 16);
    size_t passed = 0;
    while (!ending_) {
      auto asked = engine->Read(bytes.data(), bytes.size());
      if (!asked.ok() || !Pass(worker.value().get(), bytes.data(), asked.value())) return;
      auto said = worker.value()->Read(bytes.data(), bytes.size());
      if (!said.ok()) return;
      const size_t n = said.value();
      const bool spoil = n > 0 && passed < clean_ && passed + n >= clean_;
      passed += n;
      if (spoil) n_spoiled_++;
      if (spoil && mode_ == Mode::kFlip) bytes[n / 2] ^= 16;
      if (spoil && mode_ == Mode::kCut) {
        (void)Pass(engine, bytes.data(), n / 2);
        return;
      }
      if (mode_ == Mode::kStall && passed >= clean_) continue;
      if (!Pass(engine, bytes.data(), n)) return;
      if (spoil && mode_ == Mode::kTwice && !Pass(engine, bytes.data(), n)) return;
      if (n == 0 && asked.value() == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  bool Pass(Channel* to, const uint8_t* bytes, size_t n) {
    while (n > 0 && !ending_) {
      auto sent = to->Write(bytes, n);
      if (!sent.ok()) return false;
      bytes += sent.value();
      n -= sent.value();
    }
    return true;
  }

  const Address worker_;
  const Mode mode_;
  const size_t clean_;
  std::unique_ptr<Listener> listener_;
  std::atomic<bool> ending_{false};
  std::atomic<int> n_spoiled_{0};
  std::thread thread_;
};

TEST(SpoiledAnswersCostNoBit) {
  const SmallMoe::Shape shape;
  Worker worker(shape, 1.0);
  worker.Start();
  // In the welcome, among the canaries (some 180 KB), and in service.
  for (const size_t clean : {size_t{100}, size_t{50000}, size_t{200000}}) {
    for (const auto mode : {Spoiler::Mode::kFlip, Spoiler::Mode::kCut, Spoiler::Mode::kTwice,
                            Spoiler::Mode::kStall}) {
      Spoiler spoiler(worker.address(), mode, clean);
      Client client(shape, {spoiler.address()});
      client.Step(1);
      (void)client.source->Await(mode == Spoiler::Mode::kStall ? 100 : kWaitMs);
      for (int i = 0; i < 60; i++) client.Step(1);
      CHECK(spoiler.n_spoiled() > 0);
      CHECK_EQ(client.source->counts().mismatches, 0u);
    }
  }
}

TEST(ADamagedConnectionHurtsNobodyElse) {
  const SmallMoe::Shape shape;
  Worker worker(shape, 1.0);
  worker.Start();
  Client client(shape, {worker.address()});
  client.Prove();
  std::mt19937 random(3);
  for (int i = 0; i < 30; i++) {
    auto channel = ConnectTcp(worker.address(), 1000);
    CHECK_OK(channel.status());
    std::vector<uint8_t> noise;
    if (i % 2 == 0) {
      Frame hello;
      hello.payload = worker.welcome.identity.Bytes();
      AppendFrame(hello, &noise);
      if (i % 4 == 0) noise[random() % noise.size()] ^= 4;
    }
    for (int n = static_cast<int>(random() % 300); n > 0; n--) {
      noise.push_back(static_cast<uint8_t>(random()));
    }
    (void)channel.value()->Write(noise.data(), noise.size());
    client.Step(1);
  }
  CHECK(client.source->counts().experts > 0);
}

// How layer 0 is computed, as an engine's graph shows it.
std::string RecipeOf(SmallMoe* moe) {
  struct Spy : ExpertSource {
    const char* name() const override { return "spy"; }
    void Begin(const Demand& demand, std::vector<bool>*) override {
      recipe.clear();
      demand.rows->Describe(&recipe);
    }
    void End() override {}
    std::string recipe;
  };
  auto made = std::make_unique<Spy>();
  const Spy* spy = made.get();
  moe->model->AddSource(std::move(made));
  Backend backend;
  const auto graph = moe->Ffn(moe->ours, 0, moe->Rows(1), moe->Ids(1, 2), 2);
  CHECK_EQ(backend.executor.Run(graph->graph), GGML_STATUS_SUCCESS);
  return spy->recipe;
}

// Takes its time.
class Slow : public RowComputer {
 public:
  explicit Slow(RowComputer* right) : right_(right) {}
  Result<Learned> Learn(int layer, const std::string& recipe) override {
    return right_->Learn(layer, recipe);
  }
  Status Compute(int recipe, uint16_t expert, int n_rows, const float* rows,
                 std::vector<float>* out) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return right_->Compute(recipe, expert, n_rows, rows, out);
  }
  Result<ExpertSums> Sums(int layer, uint16_t expert) override {
    return right_->Sums(layer, expert);
  }
  std::string Name(int layer, int expert) const override { return right_->Name(layer, expert); }

 private:
  RowComputer* const right_;
};

// An engine that sends what it likes.
struct Raw {
  Raw(const Worker& worker, const std::string& recipe)
      : stream(std::move(ConnectTcp(worker.address(), 1000).value()), FrameLimits{}) {
    Frame hello;
    hello.payload = worker.welcome.identity.Bytes();
    CHECK_OK(stream.Send(hello));
    Frame learn;
    learn.kind = FrameKind::kRecipe;
    learn.payload.assign(recipe.begin(), recipe.end());
    CHECK_OK(stream.Send(learn));
    CHECK(Next().kind == FrameKind::kWelcome);
  }
  void Ask(uint64_t request, int n_in, uint32_t layer = 0, uint32_t patience_us = 5000000) {
    Frame ask;
    ask.kind = FrameKind::kAsk;
    ask.request = request;
    ask.layer = layer;
    ask.expert = 1;
    ask.rows = 1;
    ask.columns = static_cast<uint32_t>(n_in);
    ask.time_us = patience_us;
    const std::vector<float> rows(n_in, 0.5f);
    CHECK_OK(stream.Send(ask, rows.data()));
  }
  Frame Next() {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kWaitMs);
    while (frames.empty() && std::chrono::steady_clock::now() < until) {
      CHECK_OK(stream.Receive(&frames));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(!frames.empty());
    const Frame first = frames.empty() ? Frame() : frames.front();
    if (!frames.empty()) frames.erase(frames.begin());
    return first;
  }
  FrameStream stream;
  std::vector<Frame> frames;
};

TEST(AFullWorkerSaysSoAtOnceAndEnginesTakeTurns) {
  const SmallMoe::Shape shape;
  SmallMoe moe(shape);
  CHECK_OK(moe.Attach(4));
  const std::string recipe = RecipeOf(&moe);
  Worker worker(shape, 1.0, -1, 1, 6);
  Slow slow(worker.runner.get());
  worker.computer = &slow;
  worker.Start();
  Raw greedy(worker, recipe), modest(worker, recipe);
  for (uint64_t i = 1; i <= 10; i++) greedy.Ask(i, shape.n_embd);
  int busy = 0, answers = 0;
  for (int i = 0; i < 4; i++) busy += greedy.Next().kind == FrameKind::kBusy ? 1 : 0;
  CHECK(busy >= 3);  // one at least comes before six have been computed
  modest.Ask(1, shape.n_embd);
  CHECK(modest.Next().kind == FrameKind::kAnswer);
  // The modest one did not wait for all that the other had asked before.
  CHECK_OK(greedy.stream.Receive(&greedy.frames));
  CHECK(greedy.frames.size() < 6);
  for (int i = 4; i < 10; i++) answers += greedy.Next().kind == FrameKind::kAnswer ? 1 : 0;
  CHECK(answers >= 5);
  // What is not served, or after its time, is not computed.
  modest.Ask(2, shape.n_embd, 1);
  CHECK(modest.Next().kind == FrameKind::kFailed);
  modest.Ask(3, shape.n_embd + 1);
  CHECK(modest.Next().kind == FrameKind::kFailed);
  const uint64_t before = worker.server->counts().answers;
  modest.Ask(4, shape.n_embd);
  modest.Ask(5, shape.n_embd, 0, 1);
  CHECK(modest.Next().kind == FrameKind::kAnswer);
  CHECK(modest.Next().kind == FrameKind::kBusy);
  CHECK_EQ(worker.server->counts().answers, before + 1);
  CHECK_EQ(worker.server->counts().expired, 1u);
}

TEST(ARecipeIsNotBelieved) {
  SmallMoe moe(SmallMoe::Shape{});
  CHECK_OK(moe.Attach(4));
  const std::string recipe = RecipeOf(&moe);
  const ModelFile& file = moe.model->file();
  const ExpertLayer& layer = moe.model->layers()[0];
  CHECK_OK(FfnRecipe::Decode(recipe, file, layer).status());
  CHECK_EQ(FfnRecipe::Decode(recipe, file, layer).value().Bytes(), recipe);
  for (size_t n = 0; n < recipe.size(); n++) {
    CHECK(!FfnRecipe::Decode(recipe.substr(0, n), file, layer).ok());
  }
  // Whatever a changed recipe still passes can be run: it fits the model.
  Worker worker(SmallMoe::Shape{}, 1.0);
  std::mt19937 random(9);
  for (int round = 0; round < 3000; round++) {
    std::string bytes = recipe;
    bytes[random() % bytes.size()] = static_cast<char>(random() % 5);
    Result<RowComputer::Learned> learned = worker.runner->Learn(0, bytes);
    if (!learned.ok() || round % 50 != 0) continue;
    std::vector<float> out, rows(static_cast<size_t>(learned.value().n_in) * 2);
    CHECK_OK(worker.runner->Compute(learned.value().recipe, 1, 2, rows.data(), &out));
    CHECK_EQ(static_cast<int64_t>(out.size()), 2 * learned.value().n_out);
  }
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

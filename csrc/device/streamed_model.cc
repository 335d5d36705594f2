#include "device/streamed_model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>

#include "base/format.h"
#include "device/activations.h"
#include "device/pair_runner.h"
#include "runtime/dense_reader.h"
#include "storage/probe.h"

namespace remoe {

namespace {

// The tensors that stay on storage; what ModelFile::ExpertLayers() lists, as llama.cpp wants it
// said.
constexpr char kExpertPattern[] = "^blk\\.[0-9]+\\.ffn_(up|gate|down|gate_up)_exps\\.weight$";

constexpr int kMaxStagingBuffers = 16;
// Enough to keep most storage busy with a prompt's reads alone.
constexpr int kBackgroundDepth = 4;
// Of smaller models a read is over before anything could be hidden behind it.
constexpr uint64_t kPrefetchExpertBytes = 256u << 20;
constexpr int kMaxSpareSlots = 4;

// Keeps what llama.cpp says when it refuses a model, and lets its logger have it too.
class ErrorLog {
 public:
  ErrorLog() {
    llama_log_get(&callback_, &data_);
    llama_log_set(&ErrorLog::Log, this);
  }
  ~ErrorLog() { llama_log_set(callback_, data_); }
  std::string text() const { return text_.empty() ? "no reason given" : text_; }

 private:
  static void Log(ggml_log_level level, const char* text, void* self) {
    auto* log = static_cast<ErrorLog*>(self);
    if (level == GGML_LOG_LEVEL_ERROR && log->text_.size() < 400) {
      std::string line(text);
      while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
      if (!line.empty()) log->text_ += (log->text_.empty() ? "" : "; ") + line;
    }
    if (log->callback_ != nullptr) log->callback_(level, text, log->data_);
  }
  ggml_log_callback callback_ = nullptr;
  void* data_ = nullptr;
  std::string text_;
};

}  // namespace

Result<std::unique_ptr<StreamedModel>> StreamedModel::Open(const std::string& path,
                                                           const LoadOptions& options) {
  REMOE_RETURN_IF_ERROR(RegisterDevice());
  Result<ModelFile> file = ModelFile::Open(path);
  if (!file.ok()) return file.status();
  Result<std::vector<ExpertLayer>> layers = file.value().ExpertLayers();
  if (!layers.ok()) return layers.status();
  if (layers.value().empty()) {
    return Status(Code::kNotSupported,
                  Format("%s has no experts: there is nothing to stream", path.c_str()));
  }
  std::unique_ptr<StreamedModel> model(new StreamedModel);
  model->file_ = std::move(file.value());
  model->layers_ = std::move(layers.value());
  model->options_ = options;

  std::vector<std::vector<bool>> transformed;
  for (size_t l = 0; l < model->layers_.size(); l++) {
    const ExpertLayer& layer = model->layers_[l];
    std::vector<Repack> repacks;
    std::vector<TensorOrigin> origins;
    std::vector<bool> rewritten;
    for (size_t m = 0; m < layer.matrices.size(); m++) {
      const Tensor& tensor = model->file_.tensors()[layer.matrices[m].tensor];
      Repack repack;
      if (options.repack) {
        repack = Repack::For(static_cast<ggml_type>(tensor.type), tensor.ne[0], tensor.ne[1],
                             layer.n_experts);
      }
      rewritten.push_back(repack.active());
      model->repacked_ |= repack.active();
      repacks.push_back(repack);
      origins.push_back({model.get(), static_cast<int>(l), static_cast<int>(m)});
    }
    transformed.push_back(std::move(rewritten));
    model->repacks_.push_back(std::move(repacks));
    model->origins_.push_back(std::move(origins));
  }
  model->layout_ = std::make_unique<SlotLayout>(model->layers_, transformed);

  model->lookahead_ = std::make_unique<Lookahead>(&model->layers_, model->file_.n_experts_used());

  ReaderOptions reader_options = options.reader;
  reader_options.background_depth = kBackgroundDepth;
  if (reader_options.depth == 0) reader_options.depth = model->ProbeDepth();
  Result<std::unique_ptr<Reader>> reader = OpenReader(model->file_.paths(), reader_options);
  if (!reader.ok()) return reader.status();
  model->reader_ = std::move(reader.value());
  model->reader_notes_ = model->reader_->notes();
  model->buffer_type_ = MakeBufferType(model.get());
  return model;
}

// How many reads to keep in flight, measured on dense weights, since no expert is read before it is
// wanted. RETURNS: 0, the reader's own default, where a measurement would not pay or cannot be had.
int StreamedModel::ProbeDepth() {
  constexpr uint64_t kWorthwhileBytes = 256u << 20;
  constexpr uint64_t kLargestBlock = 1u << 20;
  if (file_.expert_bytes() < kWorthwhileBytes) return 0;
  const uint64_t wanted = std::min(kLargestBlock, layers_[0].matrices[0].expert_bytes);
  std::set<size_t> experts;
  for (const ExpertLayer& layer : layers_) {
    for (const ExpertMatrix& matrix : layer.matrices) experts.insert(matrix.tensor);
  }
  std::vector<ProbeRange> ranges;
  for (size_t i = 0; i < file_.tensors().size(); i++) {
    const Tensor& tensor = file_.tensors()[i];
    if (tensor.shard == 0 && experts.count(i) == 0 && tensor.n_bytes >= wanted) {
      ranges.push_back({tensor.offset, tensor.n_bytes});
    }
  }
  if (ranges.empty()) return 0;
  ProbeOptions probe = QuickProbe(std::move(ranges), wanted);
  probe.backend = options_.reader.backend;
  probe.direct = options_.reader.direct;
  const Result<ProbeResult> measured = Probe(file_.paths()[0], probe);
  if (!measured.ok()) return 0;
  probed_bytes_per_s_ = measured.value().pick.bytes_per_s();
  return measured.value().pick.depth;
}

StreamedModel::~StreamedModel() {
  if (store_ != nullptr) (void)EndEvent();
}

Result<llama_model*> StreamedModel::Load(llama_model_params params,
                                         std::function<bool(float)> progress) {
  const auto start = std::chrono::steady_clock::now();
  Result<std::unique_ptr<DenseReader>> dense = DenseReader::Make(reader_.get());
  if (!dense.ok()) return dense.status();
  Result<VirtualFile> file =
      VirtualFile::Make(&file_, std::move(options_.overlay),
                        [&dense](int shard, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
                          return dense.value()->ReadAt(shard, offset, n_bytes, dest);
                        });
  if (!file.ok()) return file.status();
  Result<std::FILE*> stream = file.value().OpenStream();
  if (!stream.ok()) return stream.status();

  const llama_model_tensor_buft_override overrides[] = {{kExpertPattern, buffer_type_.get()},
                                                        {nullptr, nullptr}};
  params.tensor_buft_overrides = overrides;
  params.load_mode = LLAMA_LOAD_MODE_NONE;
  params.lazy_mode = LLAMA_LAZY_MODE_OFF;
  params.use_extra_bufts = options_.repack;
  bool cancelled = false;
  struct Progress {
    std::function<bool(float)>* report;
    bool* cancelled;
  } report{&progress, &cancelled};
  if (progress) {
    params.progress_callback_user_data = &report;
    params.progress_callback = [](float fraction, void* data) {
      auto* each = static_cast<Progress*>(data);
      const bool go_on = (*each->report)(fraction);
      if (!go_on) *each->cancelled = true;
      return go_on;
    };
  }
  const ErrorLog log;
  loading_ = true;
  llama_model* model = llama_model_load_from_file_ptr(stream.value(), params);
  loading_ = false;
  std::fclose(stream.value());
  dense_bytes_read_ = file.value().dense_bytes_read();
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (model != nullptr) return model;
  if (cancelled) return Status(Code::kCancelled, "loading was cancelled");
  if (!file.value().status().ok()) return file.value().status();
  return Status(Code::kCorrupt,
                Format("llama.cpp refused %s: %s", file_.paths()[0].c_str(), log.text().c_str()));
}

int StreamedModel::n_experts() const {
  int most = 0;
  for (const ExpertLayer& layer : layers_) most = std::max(most, layer.n_experts);
  return most;
}

int StreamedModel::total_experts() const {
  int total = 0;
  for (const ExpertLayer& layer : layers_) total += layer.n_experts;
  return total;
}

namespace {

// Enough staging to keep the storage busy, and never more than a sixteenth of the slots.
int StagingBuffers(uint64_t slots_bytes, uint64_t buffer_bytes) {
  if (buffer_bytes == 0) return 0;
  return static_cast<int>(
      std::clamp<uint64_t>(slots_bytes / 16 / buffer_bytes, 1, kMaxStagingBuffers));
}

}  // namespace

uint64_t StreamedModel::BudgetFor(int n_slots) const {
  const uint64_t slots = layout_->slot_bytes() * static_cast<uint64_t>(n_slots);
  const uint64_t buffer = Staging::BufferBytes(layout_->staged_bytes());
  return slots + StagingBuffers(slots, buffer) * buffer;
}

int StreamedModel::SlotsFor(uint64_t budget_bytes) const {
  int n = static_cast<int>(std::min<uint64_t>(budget_bytes / layout_->slot_bytes(),
                                              static_cast<uint64_t>(total_experts())));
  while (n > 0 && BudgetFor(n) > budget_bytes) n--;
  return n;
}

// A pair needs what each product gives, and as much again for its input and what stands between.
uint64_t StreamedModel::ScratchBytes(int n_tokens) const {
  uint64_t most = 0, converted = 0;
  for (const ExpertLayer& layer : layers_) {
    uint64_t n_values = 0;
    for (const ExpertMatrix& matrix : layer.matrices) {
      const Tensor& tensor = file_.tensors()[matrix.tensor];
      n_values += tensor.ne[1];
      if (matrix.matrix == Matrix::kDown) continue;
      const ggml_type type = ActivationType(static_cast<ggml_type>(tensor.type));
      converted = std::max<uint64_t>(converted, ggml_row_size(type, tensor.ne[0]));
    }
    most = std::max(most, 2 * n_values * sizeof(float));
  }
  const uint64_t n = static_cast<uint64_t>(n_tokens);
  return std::max<uint64_t>(PairRunner::kScratchBytes, most * n) + converted * n;
}

// A small cache has none to spare, unless it was asked for.
int StreamedModel::SpareSlots(int n_slots, PrefetchMode prefetch) const {
  if (n_slots >= total_experts()) return 0;
  const int wished = prefetch == PrefetchMode::kOn ? std::max(1, n_slots / 64) : n_slots / 64;
  return std::max(0, std::min({wished, kMaxSpareSlots, n_slots - n_experts_used()}));
}

Status StreamedModel::Attach(const AttachOptions& options) {
  if (store_ != nullptr) return Status(Code::kInvalidArgument, "the model has its cache already");
  const int floor = n_experts_used();
  if (options.n_slots < floor || options.n_slots < 1) {
    return Status(
        Code::kBudgetTooSmall,
        Format("the expert cache is below the floor: one token uses %d experts of a layer at "
               "once, which takes %.2f MiB (--cache %lluKiB or more)",
               floor, BudgetFor(floor) / 1048576.0,
               static_cast<unsigned long long>((BudgetFor(floor) + 1023) / 1024)));
  }
  Transform transform;
  if (repacked_) {
    transform = [this](int layer, int matrix, const uint8_t* bytes, uint8_t* dest) {
      const Repack& repack = repacks_[layer][matrix];
      if (repack.active()) {
        repack.Apply(bytes, dest);
      } else {
        std::memcpy(dest, bytes, layers_[layer].matrices[matrix].expert_bytes);
      }
    };
  }
  PrefetchMode prefetch = options.prefetch;
  if (prefetch == PrefetchMode::kAuto && file_.expert_bytes() < kPrefetchExpertBytes)
    prefetch = PrefetchMode::kOff;
  StoreOptions store_options;
  store_options.n_slots = store_options.event_slots = options.n_slots;
  if (prefetch != PrefetchMode::kOff) {
    store_options.n_spare = SpareSlots(options.n_slots, prefetch);
    store_options.event_slots = std::max(floor, options.n_slots / 2);
  }
  store_options.policy = options.policy;
  store_options.profile = options.profile;
  store_options.lock = options.lock;
  store_options.staging_buffers =
      StagingBuffers(layout_->slot_bytes() * static_cast<uint64_t>(options.n_slots),
                     Staging::BufferBytes(layout_->staged_bytes()));
  Result<std::unique_ptr<ExpertStore>> store = ExpertStore::Make(
      &file_, &layers_, *layout_, std::move(reader_), std::move(transform), store_options);
  if (!store.ok()) return store.status();
  store_ = std::move(store.value());
  if (prefetch != PrefetchMode::kOff) lookahead_->Start(prefetch, store_.get());

  views_.clear();
  for (size_t l = 0; l < layers_.size(); l++) {
    std::vector<ggml_tensor> views;
    for (size_t m = 0; m < layers_[l].matrices.size(); m++) {
      const Tensor& tensor = file_.tensors()[layers_[l].matrices[m].tensor];
      ggml_tensor view{};
      view.type = static_cast<ggml_type>(tensor.type);
      view.ne[0] = static_cast<int64_t>(tensor.ne[0]);
      view.ne[1] = static_cast<int64_t>(tensor.ne[1]);
      view.ne[2] = options.n_slots;
      view.ne[3] = 1;
      view.nb[0] = ggml_type_size(view.type);
      view.nb[1] = ggml_row_size(view.type, view.ne[0]);
      view.nb[2] = layout_->slot_bytes();
      view.nb[3] = view.nb[2] * view.ne[2];
      view.data = store_->matrix(0, static_cast<int>(l), static_cast<int>(m));
      ggml_set_name(&view, tensor.name.c_str());
      if (repacks_[l][m].active()) repacks_[l][m].Tag(&view);
      views.push_back(view);
    }
    views_.push_back(std::move(views));
  }
  return Status::Ok();
}

std::vector<std::string> StreamedModel::notes() const {
  std::vector<std::string> notes = reader_notes_;
  if (store_ != nullptr) {
    notes.insert(notes.end(), store_->slab().notes().begin(), store_->slab().notes().end());
  }
  return notes;
}

TensorOrigin* StreamedModel::FindOrigin(const std::string& tensor_name) {
  for (size_t l = 0; l < layers_.size(); l++) {
    for (size_t m = 0; m < layers_[l].matrices.size(); m++) {
      if (file_.tensors()[layers_[l].matrices[m].tensor].name == tensor_name)
        return &origins_[l][m];
    }
  }
  return nullptr;
}

Event StreamedModel::Routed(const TensorOrigin& origin, Event event) {
  // Another piece of the FFN, cut off by other operations, after its experts came in waves.
  event.continued = origin.layer == last_layer_ && (used_matrices_ & 1u << origin.matrix) == 0;
  if (!event.continued) {
    // Layers come in order within a step, so one that does not follow starts the next. A prompt's
    // last layer is run for its last token alone, and is prefill all the same.
    if (origin.layer <= last_layer_ || last_layer_ < 0) {
      step_++;
      phase_ = event.n_tokens > 1 ? Phase::kPrefill : Phase::kDecode;
    }
    last_layer_ = origin.layer;
    used_matrices_ = 0;
  }
  event.step = step_;
  event.phase = phase_;
  if (trace_ != nullptr) Record(event);
  return event;
}

int StreamedModel::WantedProbabilities(int n_tokens) const {
  if (trace_ != nullptr) return std::min<int>(n_tokens, UINT16_MAX);
  return store_->cache().policy().uses_probabilities() ? std::min(n_tokens, kRecentTokens) : 0;
}

Status StreamedModel::StartTrace(const std::string& path, const std::string& fingerprint,
                                 const std::string& meta) {
  if (trace_ != nullptr) return Status(Code::kInvalidArgument, "a trace is being recorded already");
  TraceHeader header;
  header.n_layers = static_cast<uint32_t>(layers_.size());
  header.n_experts = static_cast<uint32_t>(n_experts());
  header.top_k = static_cast<uint32_t>(n_experts_used());
  header.fingerprint = fingerprint;
  header.meta = meta;
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(path, header);
  if (!writer.ok()) return writer.status();
  trace_ = std::move(writer.value());
  return Status::Ok();
}

Status StreamedModel::StopTrace() {
  if (trace_ == nullptr) return Status::Ok();
  const Status status = trace_->Finish();
  trace_.reset();
  return status;
}

// A write that fails is kept by the writer, which takes nothing more: a full disk does not end the
// conversation, and StopTrace says so.
void StreamedModel::Record(const Event& event) {
  const auto start = std::chrono::steady_clock::now();
  TraceEvent record;
  record.layer = event.layer;
  record.step = event.step;
  record.decode = event.phase == Phase::kDecode;
  record.n_tokens = event.n_tokens;
  record.experts = event.experts;
  record.n = event.n;
  record.ids = event.ids;
  record.probs = event.probs;
  record.n_prob_tokens = event.n_prob_tokens;
  (void)trace_->Append(record);
  trace_ns +=
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start)
          .count();
}

Status StreamedModel::BeginEvent(const Event& event) {
  REMOE_RETURN_IF_ERROR(EndEvent());
  return store_->BeginEvent(event);
}

bool StreamedModel::Continues(const TensorOrigin& origin) const {
  return store_->open() && last_layer_ == origin.layer &&
         (used_matrices_ & 1u << origin.matrix) == 0;
}

void StreamedModel::EndIfComplete() {
  const unsigned all = (1u << layers_[last_layer_].matrices.size()) - 1;
  if (store_->open() && used_matrices_ == all) (void)EndEvent();
}

void StreamedModel::AbandonStep() {
  (void)EndEvent();
  last_layer_ = -1;
  if (trace_ != nullptr) trace_->DropStep();
}

Status StreamedModel::EndEvent() {
  if (store_ == nullptr || !store_->open()) return Status::Ok();
  return store_->EndEvent();
}

void StreamedModel::Fail(const Status& status) {
  std::lock_guard<std::mutex> lock(failure_mutex_);
  if (failure_.ok()) failure_ = status;
}

Status StreamedModel::TakeFailure() {
  std::lock_guard<std::mutex> lock(failure_mutex_);
  Status failure = failure_;
  failure_ = Status::Ok();
  return failure;
}

}  // namespace remoe

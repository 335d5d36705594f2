#include "device/streamed_model.h"

#include <algorithm>
#include <new>

#include "base/format.h"
#include "device/compute/device_slab.h"
#include "device/depth_probe.h"
#include "device/graph/backend.h"
#include "device/graph/gpu_device.h"
#include "runtime/dense_reader.h"

namespace remoe {

namespace {

// Enough to keep most storage busy with a prompt's reads alone.
constexpr int kBackgroundDepth = 4;

// How many blocks, from the first, a token runs through. Those behind predict further tokens (MTP);
// llama.cpp loads them only where it is asked to.
int TrunkBlocks(const ModelFile& file) {
  const std::string arch = file.architecture();
  const uint64_t n_blocks = file.Unsigned(arch + ".block_count").value_or(INT32_MAX);
  const uint64_t n_nextn = file.Unsigned(arch + ".nextn_predict_layers").value_or(0);
  return static_cast<int>(std::min<uint64_t>(n_blocks - std::min(n_blocks, n_nextn), INT32_MAX));
}

}  // namespace

Result<std::unique_ptr<StreamedModel>> StreamedModel::Open(const std::string& path,
                                                           const LoadOptions& options) {
  REMOE_RETURN_IF_ERROR(RegisterDevice());
  Result<ModelFile> file = ModelFile::Open(path);
  if (!file.ok()) return file.status();
  return Make(std::move(file.value()), options);
}

Result<std::unique_ptr<StreamedModel>> StreamedModel::Make(ModelFile file,
                                                           const LoadOptions& options) {
  Result<std::vector<ExpertLayer>> layers = file.ExpertLayers();
  if (!layers.ok()) return layers.status();
  std::unique_ptr<StreamedModel> model(new StreamedModel);
  model->file_ = std::move(file);
  for (ExpertLayer& layer : layers.value()) {
    if (options.blocks.empty() || options.blocks.count(layer.block) > 0) {
      model->layers_.push_back(std::move(layer));
    }
  }
  if (model->layers_.empty()) {
    return Status(Code::kNotSupported, Format("%s has no experts: there is nothing to stream",
                                              model->file_.paths()[0].c_str()));
  }
  model->options_ = options;
  if (!options.experts_on.empty()) {
    model->gpu_ = ggml_backend_dev_by_name(options.experts_on.c_str());
    if (model->gpu_ == nullptr) {
      return Status(Code::kInvalidArgument,
                    Format("llama.cpp has no device %s here", options.experts_on.c_str()));
    }
    model->options_.repack = false;
    model->device_ = MakeDeviceOn(model->gpu_);
  }
  model->weights_ = std::make_unique<ExpertWeights>(model.get(), &model->file_, &model->layers_,
                                                    model->options_.repack);
  SlotRules rules;
  if (model->gpu_ != nullptr) {
    rules = DeviceSlab::Rules(model->gpu_, model->file_, model->layers_);
  }
  SlotLayout layout(model->layers_, model->weights_->transformed(), rules);
  std::vector<std::string> paths = model->file_.paths();
  if (!options.coarse.empty()) {
    REMOE_RETURN_IF_ERROR(model->OpenCoarse());
    layout = layout.Beside(model->coarse_->layout());
    const std::vector<std::string>& others = model->coarse_->file().paths();
    paths.insert(paths.end(), others.begin(), others.end());
  }
  model->sizes_ = std::make_unique<CacheSizes>(
      &model->file_, &model->layers_, std::move(layout),
      model->coarse_ == nullptr ? 0 : model->coarse_->layout().staged_bytes());
  model->router_notes_ =
      std::make_unique<RouterNotes>(static_cast<int>(model->layers_.size()), &model->host_copies_);
  const int n_blocks = TrunkBlocks(model->file_);
  model->n_trunk_ = static_cast<int>(
      std::count_if(model->layers_.begin(), model->layers_.end(),
                    [n_blocks](const ExpertLayer& layer) { return layer.block < n_blocks; }));
  model->planner_ = std::make_unique<PrefetchPlanner>(
      &model->layers_, model->n_trunk_, model->file_.n_experts_used(), &model->host_copies_);

  ReaderOptions reader_options = options.reader;
  reader_options.background_depth = kBackgroundDepth;
  if (reader_options.depth == 0) {
    const ProbedDepth probed = ProbeDepth(model->file_, model->layers_, options.reader);
    reader_options.depth = probed.depth;
    model->probed_bytes_per_s_ = probed.bytes_per_s;
  }
  Result<std::unique_ptr<Reader>> reader = OpenReader(paths, reader_options);
  if (!reader.ok()) return reader.status();
  if (options.peers || !model->file_.has_experts()) {
    auto wrapped = std::make_unique<PeerReader>(std::move(reader.value()), model->layers_,
                                                model->file_.has_experts());
    model->peer_reader_ = wrapped.get();
    model->reader_ = std::move(wrapped);
  } else {
    model->reader_ = std::move(reader.value());
  }
  model->buffer_type_ = MakeBufferType(
      model->device_ != nullptr ? model->device_.get() : StorageDevice(), &model->loading_);
  return model;
}

Status StreamedModel::OpenCoarse() {
  if (gpu_ != nullptr || weights_->repacked() || options_.peers || !file_.has_experts()) {
    return Status(Code::kInvalidArgument,
                  "experts in a coarser form are computed on the CPU, from storage, as they are");
  }
  Result<std::unique_ptr<CoarseExperts>> coarse =
      CoarseExperts::Open(options_.coarse, file_, layers_);
  if (!coarse.ok()) return coarse.status();
  coarse_ = std::move(coarse.value());
  return Status::Ok();
}

StreamedModel::~StreamedModel() {
  (void)EndEvent();
}

Status StreamedModel::CheckProcess() const {
  if (birthplace_.is_here()) return Status::Ok();
  return Status(Code::kNotSupported,
                file_.paths()[0] +
                    " was loaded before a fork, and the threads "
                    "that read it are not in this process: load it after the fork");
}

Status StreamedModel::Attach(const AttachOptions& options) {
  const std::lock_guard<std::mutex> lock(step_mutex_);
  try {
    return MakeStore(options);
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory, "no memory for the tables of the expert cache");
  }
}

// A step that stands between two of its layers goes no further.
void StreamedModel::Detach() {
  const std::lock_guard<std::mutex> lock(step_mutex_);
  (void)EndEvent();
  planner_->Stop();
  store_.reset();
}

Status StreamedModel::MakeStore(const AttachOptions& options) {
  if (store_ != nullptr) return Status(Code::kInvalidArgument, "the model has its cache already");
  if (!options.single_experts || options.n_slots < 1) {
    REMOE_RETURN_IF_ERROR(sizes_->Check(options.n_slots));
  }
  const PrefetchMode prefetch = prefetch_ = sizes_->Settled(options.prefetch);
  takes_back_ = options.takes_back;
  checks_files_ = options.checks_files;
  least_slots_ = options.single_experts ? 1 : std::max(1, file_.n_experts_used());
  StoreOptions store_options;
  store_options.n_slots = options.n_slots;
  store_options.most_slots = std::min(options.most_slots, sizes_->total_experts());
  store_options.n_reserved = sizes_->ReservedSlots(options.n_slots, prefetch);
  store_options.event_slots = EventSlots(options.n_slots);
  store_options.policy = options.policy;
  store_options.profile = options.profile;
  store_options.lock = options.lock;
  store_options.staging_buffers = sizes_->StagingBuffers(options.n_slots);
  std::shared_ptr<DeviceSlab> slab;
  if (gpu_ != nullptr) {
    const uint64_t n_slots = static_cast<uint64_t>(options.n_slots);
    const uint64_t slab_bytes = sizes_->layout().slot_bytes() * n_slots;
    Result<std::shared_ptr<DeviceSlab>> made =
        DeviceSlab::Make(gpu_, slab_bytes, sizes_->BudgetFor(options.n_slots) - slab_bytes);
    if (!made.ok()) return made.status();
    slab = made.value();
    REMOE_RETURN_IF_ERROR(
        weights_->CheckOn(gpu_, *slab, options.n_slots, sizes_->layout(), file_.n_experts_used()));
    store_options.memory = slab;
  }
  if (coarse_ != nullptr) {
    store_options.coarse = coarse_->Parts(reader_.get(), static_cast<int>(file_.paths().size()));
  }
  Result<std::unique_ptr<ExpertStore>> store = ExpertStore::Make(
      &file_, &layers_, sizes_->layout(), reader_.get(), weights_->transform(), store_options);
  if (!store.ok()) return store.status();
  weights_->Attach(*store.value(), sizes_->layout(), slab.get());
  if (coarse_ != nullptr) coarse_->Attach(*store.value(), sizes_->layout());
  store_ = std::move(store.value());
  if (prefetch != PrefetchMode::kOff) planner_->Start(prefetch, store_.get());
  return Status::Ok();
}

int StreamedModel::EventSlots(int n_slots) const {
  return prefetch_ == PrefetchMode::kOff ? n_slots : std::max(file_.n_experts_used(), n_slots / 2);
}

int StreamedModel::Resize(int n_slots) {
  if (store_ == nullptr) return 0;
  wanted_slots_ = std::max(1, n_slots);
  // A step looks for itself, before each of its layers.
  const std::unique_lock<std::mutex> lock(step_mutex_, std::try_to_lock);
  if (lock.owns_lock() && !store_->open()) ResizeNow();
  return store_->n_slots();
}

void StreamedModel::FinishResize() {
  if (store_ == nullptr || wanted_slots_ == 0) return;
  const std::lock_guard<std::mutex> lock(step_mutex_);
  (void)EndEvent();
  ResizeNow();
}

void StreamedModel::ResizeNow() {
  const int wanted = wanted_slots_.exchange(0);
  if (wanted == 0 || gpu_ != nullptr) return;  // a GPU's slab has one size
  const int n_slots =
      std::clamp(wanted, std::min(least_slots_, store_->most_slots()), store_->most_slots());
  if (n_slots == store_->n_slots()) return;
  store_->Resize(n_slots, sizes_->ReservedSlots(n_slots, prefetch_), EventSlots(n_slots));
}

void StreamedModel::NeedAtOnce(int n) {
  if (!takes_back_) return;
  least_slots_ = std::max(least_slots_, n);
  const Cache& cache = store_->cache();
  if (cache.geometry().n_slots >= n) return;
  wanted_slots_ = n + cache.total_slots() - cache.geometry().n_slots;
  ResizeNow();
}

std::vector<std::string> StreamedModel::notes() const {
  std::vector<std::string> notes = reader_->notes();
  if (store_ != nullptr) {
    notes.insert(notes.end(), store_->slab().notes().begin(), store_->slab().notes().end());
  }
  return notes;
}

Status StreamedModel::StartTrace(const std::string& path, const std::string& fingerprint,
                                 const std::string& meta) {
  TraceHeader header;
  header.n_layers = static_cast<uint32_t>(layers_.size());
  header.n_experts = static_cast<uint32_t>(sizes_->n_experts());
  header.top_k = static_cast<uint32_t>(file_.n_experts_used());
  header.fingerprint = fingerprint;
  header.meta = meta;
  return recorder_.Start(path, header);
}

int StreamedModel::PrefetchForStart(const std::vector<ExpertId>& experts) {
  if (store_ == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(step_mutex_);
  (void)EndEvent();  // nothing runs: a step that stopped half-way may have left one open
  const ExpertId n_experts = static_cast<ExpertId>(sizes_->n_experts());
  PrefetchPlan plan;
  plan.priority = PrefetchPriority::kStart;
  for (const ExpertId id : experts) {
    const int layer = static_cast<int>(id / n_experts);
    const auto expert = static_cast<uint16_t>(id % n_experts);
    plan.wanted.push_back({layer, expert, 1});
    if (store_->coarse() == nullptr) continue;
    if (store_->cache().SlotOf(layer, expert) == kNoSlot) store_->coarse()->Forget(id);
  }
  return store_->Prefetch(plan);
}

void StreamedModel::DeclareSteps(StepKind kind, int conversation) {
  const std::lock_guard<std::mutex> lock(step_mutex_);
  clock_.Declare(kind, conversation);
}

void StreamedModel::FinishStart() {
  if (store_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(step_mutex_);
  (void)EndEvent();
  store_->FinishStart();
}

void StreamedModel::Drop(int layer, uint16_t expert) {
  if (store_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(step_mutex_);
  (void)EndEvent();
  store_->Drop(layer, expert);
}

bool StreamedModel::Expect(const float* bonus) {
  if (store_ == nullptr) return false;
  const std::lock_guard<std::mutex> lock(step_mutex_);
  return store_->Expect(bonus);
}

Status StreamedModel::ReadTensor(const TensorOrigin& origin, uint64_t offset, uint64_t n_bytes,
                                 uint8_t* dest) {
  REMOE_RETURN_IF_ERROR(CheckProcess());
  const ExpertMatrix& matrix = layers_[origin.layer].matrices[origin.matrix];
  const Tensor& tensor = file_.tensors()[matrix.tensor];
  if (offset > tensor.n_bytes || n_bytes > tensor.n_bytes - offset) {
    return Status(Code::kInvalidArgument, Format("%s ends before that", tensor.name.c_str()));
  }
  Result<std::unique_ptr<DenseReader>> reader = DenseReader::Make(reader_.get());
  if (!reader.ok()) return reader.status();
  return reader.value()->ReadAt(matrix.shard, matrix.offset + offset, n_bytes, dest);
}

void StreamedModel::Learn(const TensorOrigin& origin, const ggml_tensor* product) {
  if (!birthplace_.is_here()) return;  // no step will come, and who has a lock may not be here
  router_notes_->Note(origin.layer, product);
  const Matrix matrix = layers_[origin.layer].matrices[origin.matrix].matrix;
  if (matrix == Matrix::kDown) return;
  // Another context may be at work on what this one teaches.
  const std::lock_guard<std::mutex> lock(step_mutex_);
  planner_->Learn(origin.layer, product);
}

Status StreamedModel::SetDial(const DialSettings& settings) {
  if (!settings.valid()) {
    return Status(Code::kInvalidArgument,
                  "swap_near, skip_cold, skip_small and coarse_below are in [0, 1)");
  }
  if (!ScoresAreKept()) {
    return Status(Code::kNotSupported,
                  "this build of ggml does not keep the router's values: no experts can be swapped "
                  "or skipped");
  }
  if (!settings.on()) return Status::Ok();
  if ((settings.coarse_below > 0) != (coarse_ != nullptr)) {
    return Status(Code::kInvalidArgument,
                  "coarse_below goes with a file of experts in a coarser form");
  }
  gates_ = std::make_unique<GateNotes>(static_cast<int>(layers_.size()));
  dial_ = std::make_unique<Dial>(settings);
  return Status::Ok();
}

Status StreamedModel::CheckDial() const {
  if (dial_ == nullptr) return Status::Ok();
  int layer = 0;
  // What is behind the trunk guesses for drafts, which never go with the dial: it is in no graph.
  const std::string why = gates_->WhyNot(n_trunk_, &layer);
  if (why.empty()) return Status::Ok();
  return Status(Code::kNotSupported,
                Format("experts cannot be swapped or skipped in layer %d of this model: %s",
                       layers_[layer].block, why.c_str()));
}

bool StreamedModel::Dialled(const TensorOrigin& origin, int n_tokens) const {
  return !clock_.AnotherPiece(origin.layer, origin.matrix) &&
         clock_.PhaseAt(origin.layer, origin.matrix, n_tokens) == Phase::kDecode;
}

uint64_t StreamedModel::RouterBytes(PrefetchMode prefetch) const {
  if (sizes_->Settled(prefetch) == PrefetchMode::kOff) return host_copies_.n_bytes();
  return host_copies_.n_bytes() + planner_->BytesToCopy();
}

void StreamedModel::Routed(const TensorOrigin& origin, Event* event) {
  const bool begins = clock_.Advance(origin.matrix, event);
  if (origin.layer >= n_trunk_) return;  // a guess: no token of the text
  if (begins) (event->phase == Phase::kDecode ? decoded_tokens : prompt_tokens) += event->n_tokens;
  recorder_.Record(*event);
}

int StreamedModel::WantedProbabilities(int n_tokens) const {
  if (recorder_.on()) return std::min<int>(n_tokens, UINT16_MAX);
  // They lie on the GPU, and where every expert has its slot nobody ever leaves.
  if (gpu_ != nullptr && store_->n_slots() >= sizes_->total_experts()) return 0;
  return store_->cache().policy().uses_probabilities() ? std::min(n_tokens, kRecentTokens) : 0;
}

Status StreamedModel::BeginEvent(const Event& event, const void* who) {
  (void)EndEvent();
  event_owner_ = who;
  return store_->BeginEvent(event);
}

bool StreamedModel::Continues(const TensorOrigin& origin, const void* who) const {
  return store_->open() && event_owner_ == who && clock_.AnotherPiece(origin.layer, origin.matrix);
}

void StreamedModel::EndIfComplete(int layer) {
  if (clock_.UsedAll(static_cast<int>(layers_[layer].matrices.size()))) (void)EndEvent();
}

Status StreamedModel::EndEvent() {
  if (store_ == nullptr || !store_->open()) return Status::Ok();
  return store_->EndEvent();
}

void StreamedModel::AbandonStep(bool recorded) {
  if (store_ != nullptr) store_->CancelPrefetch();
  (void)EndEvent();
  if (store_ != nullptr) store_->EndStep();
  clock_.Abandon();
  if (recorded) recorder_.DropStep();
}

}  // namespace remoe

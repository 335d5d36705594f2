// StreamedModel: one model whose experts stay on storage: the join of its file, its weights as ggml
// sees them, its expert store, and what watches its steps.
//
// Open() checks the files. Whoever loads the dense part (loader.h, or a program that does it by
// itself) puts the expert tensors into buffer_type(). Attach() then makes the expert cache;
// contexts may be made before or after, and decoding needs it. A failed Attach() changes nothing.
// The object outlives the llama_model and every context made from it. Nothing here knows llama.cpp's
// own library: ggml alone.
//
// Opening, attaching and what changes the cache from one thread at a time; steps lock step_mutex().
// Counts, interruption and failure from any thread; in a forked child CheckProcess() alone, and it is
// never destroyed there.
#ifndef REMOE_DEVICE_STREAMED_MODEL_H_
#define REMOE_DEVICE_STREAMED_MODEL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/birthplace.h"
#include "base/status.h"
#include "device/cache_sizes.h"
#include "device/coarse_experts.h"
#include "device/compute/dial.h"
#include "device/compute/prefetch_planner.h"
#include "device/expert_weights.h"
#include "device/graph/device.h"
#include "device/graph/gate_notes.h"
#include "device/graph/host_copies.h"
#include "device/graph/router_notes.h"
#include "device/interruption.h"
#include "device/recorder.h"
#include "device/step_clock.h"
#include "device/virtual_loading.h"
#include "gguf/model_file.h"
#include "gguf/virtual_file.h"
#include "remote/peer_reader.h"
#include "runtime/expert_source.h"
#include "runtime/expert_store.h"

namespace remoe {

struct LoadOptions {
  ReaderOptions reader;
  bool repack = true;    // rearrange weights as stock llama.cpp does by default
  Overlay overlay;       // tuned routers
  std::set<int> blocks;  // whose experts are streamed; empty for all
  bool peers = false;    // workers may send weights
  std::string coarse;    // a file of the model's experts in a coarser form; empty: none
  // The ggml device that has the slots and computes experts; empty: host memory, the CPU. With it,
  // weights are never rearranged.
  std::string experts_on;
};

struct AttachOptions {
  int n_slots = 0;
  int most_slots = 0;      // that Resize() may give it, where they are more
  bool takes_back = true;  // slots that Resize() took, for a batch that needs them at once
  std::string policy = "reuse-biased";
  PrefetchMode prefetch = PrefetchMode::kOff;
  std::shared_ptr<const Profile> profile;  // what fitting has learned of this model; may be null
  bool lock = false;
  bool single_experts = false;  // steps take one expert at a time: one slot will do
  bool checks_files = false;    // before each step, because nobody else asks CheckFiles()
};

class StreamedModel {
 public:
  // Opens and checks the files, and prepares the layout of a slot. Reads headers only.
  static Result<std::unique_ptr<StreamedModel>> Open(const std::string& path,
                                                     const LoadOptions& options);
  // The same for a file that was opened before.
  static Result<std::unique_ptr<StreamedModel>> Make(ModelFile file, const LoadOptions& options);
  ~StreamedModel();

  Status Attach(const AttachOptions& options);
  // Asks for a cache of n slots, or the nearest number that works. Takes effect at once where no step
  // is under way, else before the next layer of it. RETURNS how many slots there are now. From any
  // thread, after Attach().
  int Resize(int n_slots);
  // Between two steps: what was asked for, and was not possible yet. From the thread that runs steps.
  void FinishResize();
  // The same within a step. REQUIRES: step_mutex() is held, no event is open.
  void ResizeNow();
  // A batch can only be computed with n experts of a layer at once: takes the slots again, as far as
  // there may be so many. REQUIRES: as ResizeNow().
  void NeedAtOnce(int n);
  // Gives the cache up with all it holds, between two steps; from then on they fail. REQUIRES: no
  // source was added.
  void Detach();
  // Another place where experts' rows can be computed, asked before the cache, in this order.
  // REQUIRES: no step is under way.
  void AddSource(std::unique_ptr<ExpertSource> source) { elsewhere_.push_back(std::move(source)); }

  // Lets tokens do without experts that would have to be read, as far as the settings go. REQUIRES: no
  // context was made yet.
  Status SetDial(const DialSettings& settings);
  // Fails, and says why, where a context's graphs do not let that be done right. REQUIRES: a context
  // was made, and SetDial() before it.
  Status CheckDial() const;

  // Records every step's routing and router probabilities to a file, from the next step on. `meta`
  // is a JSON object.
  Status StartTrace(const std::string& path, const std::string& fingerprint,
                    const std::string& meta);
  // Begins to read experts, best first, into free slots. RETURNS how many got one.
  int PrefetchForStart(const std::vector<ExpertId>& experts);
  // Waits until they have been read: then they are resident.
  void FinishStart();
  bool Expect(const float* bonus);
  // Empties the slot of a resident expert.
  void Drop(int layer, uint16_t expert);
  // What the steps from the next one on are for, and whose; see StepClock and Event.
  void DeclareSteps(StepKind kind, int conversation = kNoConversation);
  // The bytes of one of our tensors, as the file has them.
  Status ReadTensor(const TensorOrigin& origin, uint64_t offset, uint64_t n_bytes, uint8_t* dest);

  const ModelFile& file() const { return file_; }
  const std::vector<ExpertLayer>& layers() const { return layers_; }
  const CacheSizes& sizes() const { return *sizes_; }
  const LoadOptions& options() const { return options_; }
  bool repacked() const { return weights_->repacked(); }
  Reader* reader() const { return reader_.get(); }
  // The same, where peers may be asked for weights; null otherwise.
  PeerReader* peer_reader() const { return peer_reader_; }
  ggml_backend_buffer_type* buffer_type() const { return buffer_type_.get(); }
  // Of models whose experts are on a GPU: what llama.cpp has to be told of before that GPU, and the
  // GPU. Null otherwise.
  ggml_backend_device* device() const { return device_.get(); }
  ggml_backend_device* gpu() const { return gpu_; }
  // Null before Attach().
  ExpertStore* store() const { return store_.get(); }
  PrefetchPlanner& planner() { return *planner_; }
  const PrefetchPlanner& planner() const { return *planner_; }
  // What has been copied, and will be for prefetch, of routers that contexts made so far have on a
  // GPU: part of the cache's budget.
  uint64_t RouterBytes(PrefetchMode prefetch) const;
  Recorder& recorder() { return recorder_; }
  const Recorder& recorder() const { return recorder_; }
  Interruption& interruption() { return interruption_; }
  const Interruption& interruption() const { return interruption_; }
  FirstFailure& failure() { return failure_; }
  std::vector<std::string> notes() const;
  // Bytes per second at the chosen depth, 0 when it was not measured.
  double probed_bytes_per_s() const { return probed_bytes_per_s_; }
  // Whether the last step's graph showed the router's probabilities; false before the first.
  bool router_probabilities() const { return scores_seen_; }

  // kNotSupported in a forked child of the process that made it.
  Status CheckProcess() const;

  // --- for who loads ---
  void BeginLoad() { loading_.SetUnderWay(true); }
  void EndLoad(uint64_t dense_bytes_read, double seconds) {
    loading_.SetUnderWay(false);
    dense_bytes_read_ = dense_bytes_read;
    load_seconds_ = seconds;
  }
  uint64_t dense_bytes_read() const { return dense_bytes_read_; }
  double load_seconds() const { return load_seconds_; }

  // --- for the device ---
  TensorOrigin* FindOrigin(const std::string& tensor_name) { return weights_->Find(tensor_name); }
  // The slab seen as the weights of that matrix: expert index = slot.
  const ggml_tensor& view(const TensorOrigin& origin) const { return weights_->view(origin); }
  // Takes note of what a product that may run later says of its layer's router.
  void Learn(const TensorOrigin& origin, const ggml_tensor* product);
  const RouterNotes& router_notes() const { return *router_notes_; }
  // Both null unless SetDial() was called.
  Dial* dial() const { return dial_.get(); }
  GateNotes* gates() const { return gates_.get(); }
  // The experts in a coarser form; null where no file of them was named.
  CoarseExperts* coarse() const { return coarse_.get(); }
  // Whether the dial has a say in a piece that comes: one that decodes, whose ids are still the
  // router's.
  bool Dialled(const TensorOrigin& origin, int n_tokens) const;
  const std::vector<std::unique_ptr<ExpertSource>>& elsewhere() const { return elsewhere_; }
  // One step, or a piece of one, at a time, whichever context it belongs to.
  std::mutex& step_mutex() { return step_mutex_; }

  // kIo naming the file if one was replaced or changed since it was opened; see checks_files.
  Status CheckFiles() const { return checks_files_ ? reader_->CheckUnchanged() : Status::Ok(); }
  // Takes in what a layer was routed to, all experts of the step: completes the event with its
  // place in the run and records it. BeginEvent then gets it, whole or in waves.
  void Routed(const TensorOrigin& origin, Event* event);
  // Whether this graph lets the router's probabilities be seen, and of how many of a step's last
  // tokens anybody wants them.
  void SawScores(bool seen) { scores_seen_ = seen; }
  int WantedProbabilities(int n_tokens) const;
  // Makes the event's experts resident and pins them until the next event begins. `who`: the
  // context that it is for.
  Status BeginEvent(const Event& event, const void* who);
  // Whether `origin` still belongs to the open event: same context and layer, a matrix not yet used
  // in it.
  bool Continues(const TensorOrigin& origin, const void* who) const;
  void MarkUsed(const TensorOrigin& origin) { clock_.MarkUsed(origin.matrix); }
  // Ends the open event once all of its layer's matrices have been used.
  void EndIfComplete(int layer);
  Status EndEvent();
  // Whether that matrix belongs to the step under way, of which something was recorded.
  bool InStep(const TensorOrigin& origin) const {
    return clock_.InStep(origin.layer, origin.matrix);
  }
  // The step goes no further: ends the open event, gives up what was prefetched for the rest of it
  // and, of a step that has `recorded` something, takes it out of the trace.
  void AbandonStep(bool recorded);

  // Tokens of the steps so far, by what the step was. Any thread.
  std::atomic<uint64_t> prompt_tokens{0}, decoded_tokens{0};
  // Time spent in the expert FFNs, stalls included, in nanoseconds.
  std::atomic<uint64_t> ffn_ns{0};

 private:
  StreamedModel() = default;
  Status OpenCoarse();
  Status MakeStore(const AttachOptions& options);
  int EventSlots(int n_slots) const;

  const Birthplace birthplace_;
  ModelFile file_;
  std::vector<ExpertLayer> layers_;
  int n_trunk_ = 0;  // of them, that every token runs through
  LoadOptions options_;
  std::unique_ptr<ExpertWeights> weights_;
  std::unique_ptr<CoarseExperts> coarse_;
  std::unique_ptr<CacheSizes> sizes_;
  std::unique_ptr<Reader> reader_;
  PeerReader* peer_reader_ = nullptr;  // reader_ as what it is
  double probed_bytes_per_s_ = 0;
  VirtualFileLoading loading_{this};
  ggml_backend_device* gpu_ = nullptr;
  std::unique_ptr<ggml_backend_device> device_;
  std::unique_ptr<ggml_backend_buffer_type> buffer_type_;
  std::unique_ptr<ExpertStore> store_;  // after reader_, which it uses
  HostCopies host_copies_;
  std::unique_ptr<RouterNotes> router_notes_;
  std::unique_ptr<Dial> dial_;
  std::unique_ptr<GateNotes> gates_;
  std::unique_ptr<PrefetchPlanner> planner_;
  std::vector<std::unique_ptr<ExpertSource>> elsewhere_;  // after store_, whose arrivals they know

  Recorder recorder_;
  Interruption interruption_;
  FirstFailure failure_;
  std::mutex step_mutex_;
  StepClock clock_;
  const void* event_owner_ = nullptr;
  PrefetchMode prefetch_ = PrefetchMode::kOff;
  std::atomic<int> wanted_slots_{0};  // 0: as they are
  int least_slots_ = 1;
  bool takes_back_ = true;
  bool checks_files_ = false;
  std::atomic<bool> scores_seen_{false};
  uint64_t dense_bytes_read_ = 0;
  double load_seconds_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_STREAMED_MODEL_H_

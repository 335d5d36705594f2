// StreamedModel: one llama.cpp model whose experts stay on storage, with all that it takes to run
// it.
//
// Load() gives llama.cpp the model as a virtual file, so that only dense bytes are read. Attach()
// then makes the expert cache; contexts may be made before or after, and decoding needs it. The
// object outlives the llama_model and every context made from it.
//
// Load, Attach and decoding from one thread at a time; counts, Interrupt and failure() from any.
#ifndef REMOE_DEVICE_STREAMED_MODEL_H_
#define REMOE_DEVICE_STREAMED_MODEL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "device/lookahead.h"
#include "device/repack.h"
#include "gguf/model_file.h"
#include "gguf/virtual_file.h"
#include "llama.h"
#include "runtime/expert_store.h"
#include "trace/trace_writer.h"

namespace remoe {

struct LoadOptions {
  ReaderOptions reader;
  bool repack = true;  // rearrange weights as stock llama.cpp does by default
  Overlay overlay;     // tuned routers
};

struct AttachOptions {
  int n_slots = 0;
  std::string policy = "reuse-biased";
  PrefetchMode prefetch = PrefetchMode::kOff;
  std::shared_ptr<const Profile> profile;  // what fitting has learned of this model; may be null
  bool lock = false;
};

class StreamedModel {
 public:
  // Opens and checks the files, and prepares the layout of a slot. Reads headers only.
  static Result<std::unique_ptr<StreamedModel>> Open(const std::string& path,
                                                     const LoadOptions& options);
  ~StreamedModel();

  // Loads the model with `params`, of which buffer overrides and load mode are replaced.
  // `progress` gets a fraction and says whether to go on. RETURNS: the model, owned by the caller.
  Result<llama_model*> Load(llama_model_params params, std::function<bool(float)> progress);

  Status Attach(const AttachOptions& options);

  // Records every step's routing and router probabilities to a file, from the next step on. `meta`
  // is a JSON object.
  Status StartTrace(const std::string& path, const std::string& fingerprint,
                    const std::string& meta);
  // Completes the file. RETURNS: what cut the recording short, if anything did; the steps before it
  // are in the file.
  Status StopTrace();
  bool tracing() const { return trace_ != nullptr; }
  uint64_t trace_events() const { return trace_ != nullptr ? trace_->n_events() : 0; }
  // What cut the recording short; empty while nothing did.
  std::string trace_failure() const { return trace_ ? trace_->failure().message() : ""; }

  const ModelFile& file() const { return file_; }
  const std::vector<ExpertLayer>& layers() const { return layers_; }
  const SlotLayout& layout() const { return *layout_; }
  // Bytes that a cache of n_slots takes in all, staging included; and its inverse.
  uint64_t BudgetFor(int n_slots) const;
  int SlotsFor(uint64_t budget_bytes) const;
  // Bytes that PairRunner may take for a batch of n_tokens which one expert takes all of.
  uint64_t ScratchBytes(int n_tokens) const;
  int n_experts() const;
  int total_experts() const;
  int n_experts_used() const { return file_.n_experts_used(); }
  uint64_t dense_bytes_read() const { return dense_bytes_read_; }
  double load_seconds() const { return load_seconds_; }
  ExpertStore* store() const { return store_.get(); }
  Lookahead& lookahead() { return *lookahead_; }
  const Lookahead& lookahead() const { return *lookahead_; }
  bool repacked() const { return repacked_; }
  // Whether the last step's graph showed the router's probabilities; false before the first.
  bool router_probabilities() const { return scores_seen_; }
  // Bytes per second at the chosen depth, 0 when it was not measured.
  double probed_bytes_per_s() const { return probed_bytes_per_s_; }
  std::vector<std::string> notes() const;

  // --- for the device ---
  // The slab seen as the weights of that matrix: expert index = slot.
  const ggml_tensor& view(const TensorOrigin& origin) const {
    return views_[origin.layer][origin.matrix];
  }
  bool loading() const { return loading_; }
  // Takes note of what a product that may run later says of its layer's router.
  void Learn(const TensorOrigin& origin, const ggml_tensor* product) {
    const Matrix matrix = layers_[origin.layer].matrices[origin.matrix].matrix;
    if (matrix != Matrix::kDown) lookahead_->Learn(origin.layer, product);
  }
  TensorOrigin* FindOrigin(const std::string& tensor_name);
  // Takes in what a layer was routed to, all experts of the step: completes the event with its
  // place in the run and records it. BeginEvent then gets it, whole or in waves.
  Event Routed(const TensorOrigin& origin, Event event);
  // Whether this graph lets the router's probabilities be seen, and of how many of a step's last
  // tokens anybody wants them.
  void SawScores(bool seen) { scores_seen_ = seen; }
  int WantedProbabilities(int n_tokens) const;
  // Makes the event's experts resident and pins them until the next event begins.
  Status BeginEvent(const Event& event);
  // Whether `origin` still belongs to the open event: same layer, a matrix not yet used in it.
  bool Continues(const TensorOrigin& origin) const;
  void MarkUsed(const TensorOrigin& origin) { used_matrices_ |= 1u << origin.matrix; }
  // Ends the open event once all of its layer's matrices have been used.
  void EndIfComplete();
  Status EndEvent();
  // Ends the open event of a step that goes no further.
  void AbandonStep();
  void Fail(const Status& status);
  // The first failure since the last TakeFailure.
  Status TakeFailure();

  void Interrupt() { interrupted_ = true; }
  void ClearInterrupt() { interrupted_ = false; }
  bool interrupted() const { return interrupted_; }
  // Time spent in the expert FFNs, stalls included, in nanoseconds.
  std::atomic<uint64_t> ffn_ns{0};
  // The part of it spent on recording.
  std::atomic<uint64_t> trace_ns{0};

 private:
  StreamedModel() = default;
  int ProbeDepth();
  int SpareSlots(int n_slots, PrefetchMode prefetch) const;
  void Record(const Event& event);

  ModelFile file_;
  std::vector<ExpertLayer> layers_;
  std::vector<std::vector<Repack>>
      repacks_;  // as layers_; inactive ones where nothing is rearranged
  std::unique_ptr<SlotLayout> layout_;
  bool repacked_ = false;
  LoadOptions options_;
  std::unique_ptr<Reader> reader_;  // until Attach hands it to the store
  std::unique_ptr<ggml_backend_buffer_type> buffer_type_;
  std::vector<std::vector<TensorOrigin>> origins_;
  std::vector<std::vector<ggml_tensor>> views_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Lookahead> lookahead_;
  std::vector<std::string> reader_notes_;
  std::unique_ptr<TraceWriter> trace_;

  bool loading_ = false;
  int64_t step_ = -1;
  Phase phase_ = Phase::kPrefill;  // of the step
  std::atomic<bool> scores_seen_{false};
  int last_layer_ = -1;
  unsigned used_matrices_ = 0;
  uint64_t dense_bytes_read_ = 0;
  double load_seconds_ = 0;
  double probed_bytes_per_s_ = 0;
  std::atomic<bool> interrupted_{false};
  std::mutex failure_mutex_;
  Status failure_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_STREAMED_MODEL_H_

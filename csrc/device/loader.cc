#include "device/loader.h"

#include <chrono>
#include <string>
#include <vector>

#include "base/format.h"
#include "llama.h"
#include "runtime/dense_reader.h"

namespace remoe {

namespace {

// The tensors that stay on storage; what ModelFile::ExpertLayers() lists, as llama.cpp wants it
// said.
constexpr char kExpertPattern[] = "^blk\\.[0-9]+\\.ffn_(up|gate|down|gate_up)_exps\\.weight$";

// Small, and used between the products with experts: they stay where those are computed, whatever else
// goes to a GPU, or each of them would cut the expert FFN in two.
constexpr char kBesidePattern[] = "^blk\\.[0-9]+\\.ffn_(up|gate|down|gate_up)_exps\\.(bias|scale)$";

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
  static constexpr size_t kLongest = 300;  // of a line: a value of the file may be in it
  static void Log(ggml_log_level level, const char* text, void* self) {
    auto* log = static_cast<ErrorLog*>(self);
    if (level == GGML_LOG_LEVEL_ERROR && log->text_.size() < 400) {
      std::string line(text);
      while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
      if (line.size() > kLongest) line.replace(kLongest, std::string::npos, "...");
      if (!line.empty()) log->text_ += (log->text_.empty() ? "" : "; ") + line;
    }
    if (log->callback_ != nullptr) log->callback_(level, text, log->data_);
  }
  ggml_log_callback callback_ = nullptr;
  void* data_ = nullptr;
  std::string text_;
};

// The device that computes experts, which takes no layer, and the GPU, which takes all of them.
void NameDevices(StreamedModel* model, std::vector<ggml_backend_dev_t>* devices,
                 std::vector<float>* shares) {
  *devices = {model->device(), model->gpu(), nullptr};
  shares->assign(llama_max_devices(), 0);
  (*shares)[1] = 1;
}

struct Progress {
  const std::function<bool(float)>* report;
  bool cancelled = false;
};

bool Report(float fraction, void* data) {
  auto* progress = static_cast<Progress*>(data);
  const bool go_on = (*progress->report)(fraction);
  progress->cancelled |= !go_on;
  return go_on;
}

}  // namespace

Result<llama_model*> Load(StreamedModel* model, const llama_model_params& wished,
                          const std::function<bool(float)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  Result<std::unique_ptr<DenseReader>> dense = DenseReader::Make(model->reader());
  if (!dense.ok()) return dense.status();
  Result<VirtualFile> file =
      VirtualFile::Make(&model->file(), model->options().overlay,
                        [&dense](int shard, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
                          return dense.value()->ReadAt(shard, offset, n_bytes, dest);
                        });
  if (!file.ok()) return file.status();
  Result<std::FILE*> stream = file.value().OpenStream();
  if (!stream.ok()) return stream.status();

  const llama_model_tensor_buft_override overrides[] = {
      {kExpertPattern, model->buffer_type()},
      {model->gpu() != nullptr ? nullptr : kBesidePattern, ggml_backend_cpu_buffer_type()},
      {nullptr, nullptr}};
  llama_model_params params = wished;
  std::vector<ggml_backend_dev_t> devices;
  std::vector<float> shares;
  if (model->gpu() != nullptr) {
    NameDevices(model, &devices, &shares);
    params.devices = devices.data();
    params.tensor_split = shares.data();
  }
  params.tensor_buft_overrides = overrides;
  params.load_mode = LLAMA_LOAD_MODE_NONE;
  params.lazy_mode = LLAMA_LAZY_MODE_OFF;
  params.use_extra_bufts = model->options().repack;
  Progress reporting{&progress};
  if (progress) {
    params.progress_callback_user_data = &reporting;
    params.progress_callback = Report;
  }
  const ErrorLog log;
  model->BeginLoad();
  llama_model* loaded = llama_model_load_from_file_ptr(stream.value(), params);
  std::fclose(stream.value());
  model->EndLoad(file.value().dense_bytes_read(),
                 std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  if (loaded != nullptr) return loaded;
  if (reporting.cancelled) return Status(Code::kCancelled, "loading was cancelled");
  if (!file.value().status().ok()) return file.value().status();
  return Status(Code::kCorrupt, Format("llama.cpp refused %s: %s", model->file().paths()[0].c_str(),
                                       log.text().c_str()));
}

}  // namespace remoe

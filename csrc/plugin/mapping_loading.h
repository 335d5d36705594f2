// MappingLoading: how a program's own models come in: from the files that it has mapped.
//
// llama.cpp offers every weight to the plug-in's buffer type, which takes the experts. As the last of
// a buffer's tensors gets its place, the model is opened and gets its cache, so that whatever stands
// against it ends the load; filling then only checks that llama.cpp means the same bytes. Nothing is
// read but headers.
//
// One for the process, never destroyed. Loads may run on several threads.
#ifndef REMOE_PLUGIN_MAPPING_LOADING_H_
#define REMOE_PLUGIN_MAPPING_LOADING_H_

#include <memory>
#include <mutex>
#include <set>

#include "device/graph/weight_buffer.h"
#include "plugin/process_budget.h"
#include "plugin/settings.h"
#include "plugin/status_files.h"

namespace remoe::plugin {

class MappingLoading : public WeightLoading {
 public:
  // `settings` as they were read: where they make no sense, every load is refused with that.
  explicit MappingLoading(const Result<Settings>& settings);
  std::unique_ptr<BufferTensors> Begin(size_t n_tensors) override;
  bool in_place() const override { return false; }
  void Listed() override;
  void Claimed() override;

 private:
  friend class MappedTensors;
  const Result<Settings>& settings_;
  ProcessBudget budget_;
  StatusFiles status_;
  std::mutex mutex_;
  std::set<uintptr_t> taken_;  // mappings of models that are loaded
};

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_MAPPING_LOADING_H_

// What the device counts beside the store: names, meanings, and where each count is.
//
// One table, from which the names, the help and the values that Python sees are made; the store has
// a table of its own.
// Functions of a model, which the caller owns. Counts may be read from any thread.
#ifndef REMOE_BINDINGS_DEVICE_COUNTERS_H_
#define REMOE_BINDINGS_DEVICE_COUNTERS_H_

#include <atomic>
#include <cstdint>

#include "device/streamed_model.h"

namespace remoe::bindings {

struct DeviceCounter {
  const char* name;
  const char* meaning;
  uint64_t (*value)(const StreamedModel& model);
};
inline uint64_t OfDial(const StreamedModel& model, const std::atomic<uint64_t> Dial::* counter) {
  return model.dial() == nullptr ? 0 : (model.dial()->*counter).load();
}
inline constexpr DeviceCounter kDeviceCounters[] = {
    {"predict_ns", "predicting which experts come next",
     [](const StreamedModel& model) { return model.planner().predict_ns(); }},
    {"ffn_ns", "in the expert FFNs, stalls included",
     [](const StreamedModel& model) -> uint64_t { return model.ffn_ns; }},
    {"trace_ns", "those of ffn_ns that recording took",
     [](const StreamedModel& model) -> uint64_t { return model.recorder().ns; }},
    {"weighed", "pairs of token and expert that were looked at for swapping and skipping",
     [](const StreamedModel& model) { return OfDial(model, &Dial::weighed); }},
    {"swapped", "those whose expert was swapped for a resident one",
     [](const StreamedModel& model) { return OfDial(model, &Dial::swapped); }},
    {"skipped_cold", "those that were skipped, as their expert would have been read",
     [](const StreamedModel& model) { return OfDial(model, &Dial::skipped_cold); }},
    {"skipped_small", "those that were skipped for their share of the weights alone",
     [](const StreamedModel& model) { return OfDial(model, &Dial::skipped_small); }},
    {"coarse", "those that were computed from a coarser form",
     [](const StreamedModel& model) { return OfDial(model, &Dial::coarse); }},
};

}  // namespace remoe::bindings

#endif  // REMOE_BINDINGS_DEVICE_COUNTERS_H_

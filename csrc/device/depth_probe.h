// How many reads to keep in flight, measured on a model's dense weights, since no expert is read
// before it is wanted.
//
// A function of the file and its device: it reads for a moment, with threads of its own that have
// ended when it returns, and keeps nothing. Small models are not measured.
#ifndef REMOE_DEVICE_DEPTH_PROBE_H_
#define REMOE_DEVICE_DEPTH_PROBE_H_

#include <vector>

#include "gguf/model_file.h"
#include "storage/reader.h"

namespace remoe {

struct ProbedDepth {
  int depth = 0;           // 0, the reader's own default, where a measurement would not pay
  double bytes_per_s = 0;  // at that depth, 0 when it was not measured
};

ProbedDepth ProbeDepth(const ModelFile& file, const std::vector<ExpertLayer>& layers,
                       const ReaderOptions& reader);

}  // namespace remoe

#endif  // REMOE_DEVICE_DEPTH_PROBE_H_

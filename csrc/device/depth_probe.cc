#include "device/depth_probe.h"

#include <algorithm>
#include <set>

#include "storage/probe.h"

namespace remoe {

ProbedDepth ProbeDepth(const ModelFile& file, const std::vector<ExpertLayer>& layers,
                       const ReaderOptions& reader) {
  constexpr uint64_t kWorthwhileBytes = 256u << 20;
  constexpr uint64_t kLargestBlock = 1u << 20;
  if (file.expert_bytes() < kWorthwhileBytes) return {};
  const uint64_t wanted = std::min(kLargestBlock, layers[0].matrices[0].expert_bytes);
  std::set<size_t> experts;
  for (const ExpertLayer& layer : layers) {
    for (const ExpertMatrix& matrix : layer.matrices) experts.insert(matrix.tensor);
  }
  std::vector<ProbeRange> ranges;
  for (size_t i = 0; i < file.tensors().size(); i++) {
    const Tensor& tensor = file.tensors()[i];
    if (tensor.shard == 0 && experts.count(i) == 0 && tensor.n_bytes >= wanted) {
      ranges.push_back({tensor.offset, tensor.n_bytes});
    }
  }
  if (ranges.empty()) return {};
  ProbeOptions probe = QuickProbe(std::move(ranges), wanted);
  probe.backend = reader.backend;
  probe.direct = reader.direct;
  const Result<ProbeResult> measured = Probe(file.paths()[0], probe);
  if (!measured.ok()) return {};
  return {measured.value().pick.depth, measured.value().pick.bytes_per_s()};
}

}  // namespace remoe

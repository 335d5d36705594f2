#include "plugin/dense_pages.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/memory_page.h"
#include "base/rounding.h"

namespace remoe::plugin {

std::vector<ByteRange> PagesAround(std::vector<ByteRange> ranges) {
  const uint64_t page = MemoryPageBytes();
  for (ByteRange& range : ranges) {
    range.begin = RoundDown(range.begin, page);
    range.end = RoundUp(range.end, page);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  std::vector<ByteRange> merged;
  for (const ByteRange& range : ranges) {
    if (merged.empty() || merged.back().end < range.begin) {
      merged.push_back(range);
    } else {
      merged.back().end = std::max(merged.back().end, range.end);
    }
  }
  return merged;
}

void ReadDensePages(const ModelFile& model, const std::vector<FileMapping>& shards) {
  for (size_t shard = 0; shard < shards.size(); shard++) {
    const FileMapping& mapping = shards[shard];
    if (mapping.begin == 0) continue;
    std::vector<ByteRange> dense;
    for (const Tensor& tensor : model.tensors()) {
      if (static_cast<size_t>(tensor.shard) != shard || ExpertMatrixOf(tensor.name)) continue;
      dense.push_back({tensor.offset, tensor.offset + tensor.n_bytes});
    }
    for (const ByteRange& range : PagesAround(std::move(dense))) {
      void* pages = reinterpret_cast<void*>(mapping.begin + range.begin);
      const uint64_t n_bytes =
          std::min<uint64_t>(range.end, mapping.end - mapping.begin) - range.begin;
      // The advice against reading ahead that came with "this is NUMA" stays for the experts.
      madvise(pages, n_bytes, MADV_NORMAL);
      madvise(pages, n_bytes, MADV_WILLNEED);
    }
  }
}

}  // namespace remoe::plugin

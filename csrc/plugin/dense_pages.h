// A mapped model's dense weights: which pages they are, and having the kernel read those alone.
//
// llama.cpp was kept from reading the whole file (see program_hooks.h), so somebody has to say which
// parts will be wanted. The kernel reads them in the background; nothing waits, and what could not be
// read ahead is read when it is first touched.
//
// Pure functions of a file and this process' mappings. The thread that loads.
#ifndef REMOE_PLUGIN_DENSE_PAGES_H_
#define REMOE_PLUGIN_DENSE_PAGES_H_

#include <cstdint>
#include <vector>

#include "gguf/model_file.h"
#include "plugin/process_maps.h"

namespace remoe::plugin {

struct ByteRange {
  uint64_t begin = 0, end = 0;
};

// Sorted ranges that neither touch nor overlap, on page borders, around the given ones.
std::vector<ByteRange> PagesAround(std::vector<ByteRange> ranges);

// `shards`: the mapping of each of the model's files; one with no begin is left out.
void ReadDensePages(const ModelFile& model, const std::vector<FileMapping>& shards);

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_DENSE_PAGES_H_

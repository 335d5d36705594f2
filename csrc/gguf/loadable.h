// CheckLoadable: refuses, by key or tensor, what llama.cpp would abort the process over.
//
// llama.cpp asserts on many values of a file: counts, groups, head sizes, the vocabulary. An
// assertion ends the process without a word that a person can use, so what it asserts on is checked
// here first, with the limits of the pinned version (llama-cpp-python 0.3.36: src/llama-model.cpp,
// llama-vocab.cpp, llama-graph.cpp and models/). What llama.cpp refuses by itself, with an error,
// is left to it, except where a name here helps. A file that llama.cpp runs passes.
//
// Reads what ModelFile holds; no tensor data. Thread-safe.
#ifndef REMOE_GGUF_LOADABLE_H_
#define REMOE_GGUF_LOADABLE_H_

#include "base/status.h"
#include "gguf/metadata.h"
#include "gguf/model_file.h"

namespace remoe {

// kInvalidArgument where the file is an adapter, as overlays and LoRA files are.
Status CheckNoAdapter(const ModelFile& file);

// As CheckNoAdapter, or kCorrupt or kNotSupported, naming the path and the key or tensor.
Status CheckLoadable(const ModelFile& file);

// Its parts, in their order. Each relies on the ones before.
Status CheckLayers(const Metadata& keys);   // block_count and the keys that are per layer
Status CheckExperts(const Metadata& keys);  // counts and groups, against each other and the tensors
Status CheckAttention(const Metadata& keys);   // heads, rope, norms
Status CheckRecurrence(const Metadata& keys);  // SSM and convolution sizes of hybrid layers
Status CheckVocabulary(const Metadata& keys);
Status CheckTensorTypes(const Metadata& keys);  // formats that the graph cannot compute with

}  // namespace remoe

#endif  // REMOE_GGUF_LOADABLE_H_

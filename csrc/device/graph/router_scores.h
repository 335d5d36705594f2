// What a layer's router thought of every expert, chosen or not, read from the graph.
//
// llama.cpp sorts a row of scores per token and takes the first k as the expert ids of the FFN's
// products, so the ids lead back to the scores: softmax or sigmoid probabilities, such with a
// selection bias or with whole groups masked out, or plain logits, by architecture. The backend
// asks the scheduler to keep them until the FFN begins (see Optimize in backend.cc); nothing is
// claimed, copied or computed for it. Pure functions of the graph; any
// thread.
#ifndef REMOE_DEVICE_GRAPH_ROUTER_SCORES_H_
#define REMOE_DEVICE_GRAPH_ROUTER_SCORES_H_

#include "ggml.h"

namespace remoe {

// The scores [n_experts, n_tokens] that the ids of an expert product were chosen by; null where
// they were chosen otherwise (by a table, or cast from other ids).
ggml_tensor* RouterScores(const ggml_tensor* product);

// What the scores that are sorted are.
enum class ScoreKind { kProbabilities, kLogits, kBiased };
ScoreKind KindOf(const ggml_tensor* scores);

// One token's scores [n_experts] as probabilities, each in [0, 1]. Probabilities stay what they are;
// logits go through a softmax, and so do biased scores, which keep their order that way.
void ToProbabilities(ScoreKind kind, const float* scores, int64_t n_experts, float* probs);

// Writes the router's probabilities of tokens [begin, end) to probs[end - begin][n_experts].
// REQUIRES: scores is computed and in host memory.
void ReadProbabilities(const ggml_tensor* scores, int64_t begin, int64_t end, float* probs);

}  // namespace remoe

#endif  // REMOE_DEVICE_GRAPH_ROUTER_SCORES_H_

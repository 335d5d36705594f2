#include "device/graph/router_notes.h"

#include <string>

#include "ggml-backend.h"

namespace remoe {

void RouterNote::ReadProbabilities(int64_t begin, int64_t end, float* probs) const {
  const int64_t n_experts = logits->ne[0];
  std::vector<float> row(n_experts);
  const size_t row_bytes = row.size() * sizeof(float);
  if (logits->nb[1] == row_bytes) {
    // In one go: a copy from a device costs more to begin than to make.
    ggml_backend_tensor_get(logits, probs, begin * row_bytes, (end - begin) * row_bytes);
  }
  for (int64_t t = begin; t < end; t++, probs += n_experts) {
    if (logits->nb[1] != row_bytes) {
      ggml_backend_tensor_get(logits, probs, t * logits->nb[1], row_bytes);
    }
    row.assign(probs, probs + n_experts);
    for (const RouterChain::Step& step : steps) {
      ApplyStep(step, row.data(), static_cast<int>(n_experts));
    }
    ToProbabilities(kind, row.data(), n_experts, probs);
  }
}

void RouterNotes::Note(int layer, const ggml_tensor* product) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (in_host_memory_[layer]) return;
    notes_.erase(product);
  }
  const ggml_tensor* scores = RouterScores(product);
  RouterChain chain;
  std::string why;
  if (scores == nullptr) return;
  if (!FollowRouter(product, static_cast<int>(scores->ne[0]), &chain, &why)) return;
  const bool fits = chain.logits->type == GGML_TYPE_F32 && chain.logits->nb[0] == sizeof(float) &&
                    chain.logits->ne[0] == scores->ne[0] && chain.logits->ne[1] == scores->ne[1] &&
                    chain.logits->ne[2] == 1 && chain.logits->ne[3] == 1;
  RouterNote note;
  note.kind = KindOf(scores);
  note.logits = const_cast<ggml_tensor*>(chain.logits);
  note.steps.assign(chain.steps.begin() + chain.n_leading, chain.steps.end());
  if (HostCopies::BytesFor(chain.weight) > 0) {
    for (RouterChain::Step& step : note.steps) step.bias = copies_->Of(step.bias);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (HostCopies::BytesFor(chain.weight) == 0) {
    in_host_memory_[layer] = true;
  } else if (fits) {
    notes_[product] = std::move(note);
  }
}

const RouterNote* RouterNotes::Find(const ggml_tensor* product) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = notes_.find(product);
  return found == notes_.end() ? nullptr : &found->second;
}

}  // namespace remoe

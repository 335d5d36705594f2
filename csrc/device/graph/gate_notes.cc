#include "device/graph/gate_notes.h"

#include <algorithm>
#include <utility>

namespace remoe {

namespace {

std::mutex g_mutex;
std::vector<GateNotes*> g_all;

}  // namespace

GateNotes::GateNotes(int n_layers) : seen_(n_layers), why_not_(n_layers) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_all.push_back(this);
}

GateNotes::~GateNotes() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_all.erase(std::find(g_all.begin(), g_all.end(), this));
}

void GateNotes::NoteOthers(const ggml_tensor* product) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  if (g_all.empty()) return;
  const ggml_tensor* router = RouterOf(product);
  for (GateNotes* notes : g_all) notes->NoteOther(router);
}

void GateNotes::NoteOther(const ggml_tensor* router) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [ids, note] : notes_) {
    if (router == nullptr || note.router != router) continue;
    why_not_[note.layer] = "its router also chooses experts that are not streamed";
  }
}

void GateNotes::Note(const ggml_tensor* node, const GateChain& found, int layer) {
  GateNote note;
  note.chain = found;
  note.layer = layer;
  note.router = RouterOf(found.product);
  std::string why;
  const bool followed = FollowGate(node, &note.chain, &why);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (followed) {
    seen_[layer] = true;
    notes_[found.product->src[2]] = std::move(note);
  } else if (!why.empty()) {
    why_not_[layer] = why;
    notes_.erase(found.product->src[2]);
  }
}

GateNote* GateNotes::Find(const ggml_tensor* ids) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = notes_.find(ids);
  return found == notes_.end() ? nullptr : &found->second;
}

std::string GateNotes::WhyNot(int n_layers, int* layer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int i = 0; i < n_layers; i++) {
    *layer = i;
    if (!why_not_[i].empty()) return why_not_[i];
    if (!seen_[i]) return "its experts' weights are not applied to what the experts gave";
  }
  return "";
}

}  // namespace remoe

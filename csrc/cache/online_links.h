// OnlineLinks: how an expert's use follows from the experts just chosen in its layer, learned while
// running, by what a score without them leaves unexplained. The score is taken as a logit for being
// used within the layer's next few events: as many as would fill the cache if all used other
// experts, up to kMostAwaited. Then the links from the experts that were chosen move one step of
// logistic regression (AdaGrad, where a link's squared slopes are taken as its source's steps times
// its target's mean), pulled towards 0. A bias of all layers follows too. Each layer keeps a fading
// record of the log-loss with and without its links; they count only while they win on it.
//
// A policy owns one; not thread-safe. Nothing is allocated after construction. The same events give
// the same bits on every machine.
#ifndef REMOE_CACHE_ONLINE_LINKS_H_
#define REMOE_CACHE_ONLINE_LINKS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace remoe {

class OnlineLinks {
 public:
  static constexpr int kMostAwaited = 8;
  // Links of larger models are not kept: a policy's tables are not part of the cache's budget, and
  // have to fit beside it into what a run may take besides.
  static constexpr uint64_t kMostBytes = uint64_t{24} << 20;

  // stride: experts up to a multiple of 16, the length of a row.
  OnlineLinks(int n_layers, int n_experts, size_t stride);

  // One token chose `experts` in the layer, `used` [stride] is 1 for these, and `score` [stride] is
  // what the policy makes of it without links. Learns from it. REQUIRES: n > 0.
  void Follow(int layer, const uint16_t* experts, int n, const float* used, const float* score);
  // Adds what links say of who follows these experts.
  void AddTo(float* score, int layer, const uint16_t* experts, int n) const;
  // What comes next in the layer follows nothing that came before: what waits is forgotten.
  void Break(int layer) {
    if (kept_) waiting_[layer] = 0;
  }
  void BreakAll();
  // The cache has so many slots from now on.
  void Fill(int n_slots) { n_slots_ = n_slots; }

  // Whether the model is small enough for links; without them nothing is ever added.
  bool kept() const { return kept_; }
  // Whether the layer's links count at present.
  bool trusted(int layer) const { return kept_ && with_[layer] < without_[layer]; }

 private:
  // Events after one until an expert counts as not used soon, where each uses n.
  int Awaited(int n) const;
  void Learn(int layer, int slot);
  // Adds the loss of the logits in sum_ to a layer's fading record.
  void Record(const float* soon, double* record);
  size_t Link(int layer, int from) const {
    return (static_cast<size_t>(layer) * n_experts_ + from) * stride_;
  }
  size_t Slot(int layer, int slot) const {
    return static_cast<size_t>(layer) * kMostAwaited + slot;
  }

  const int n_layers_, n_experts_;
  const size_t stride_;
  const bool kept_;            // or everything below is empty
  std::vector<float> links_;   // [layer][from][to]
  std::vector<float> steps_;   // [layer][from] how often its links have moved
  std::vector<float> slopes_;  // [layer][to] mean square of the errors
  float bias_;
  int n_slots_ = 0;
  std::vector<double> with_, without_;  // [layer] log-loss, fading

  // The last events of each layer, which wait for what is used; a ring.
  std::vector<uint16_t> chosen_;           // [layer][kMostAwaited][n_experts]
  std::vector<int> n_chosen_;              // [layer][kMostAwaited]
  std::vector<float> score_;               // [layer][kMostAwaited] rows: without links
  std::vector<float> soon_;                // [layer][kMostAwaited] rows: 1 where used since
  std::vector<int> next_;                  // [layer] the slot to write
  std::vector<int> waiting_;               // [layer] how many slots hold an event
  std::vector<float> sum_, error_, loss_;  // rows
};

}  // namespace remoe

#endif  // REMOE_CACHE_ONLINE_LINKS_H_

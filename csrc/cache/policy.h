// Policy: decides which resident expert leaves when a missing one needs its slot.
//
// The cache owns residency, slots and pins; a policy only keeps what it needs to rank. It hears of
// every event (all experts that one step routes to in one layer are one event), of every hit,
// insertion and eviction, and names a victim from the experts that may leave. Pinned experts are on
// another list, so a policy cannot name one. The same object code runs in the live engine and in
// the trace simulator.
//
// Owned by one Cache and, like that, not thread-safe: one event at a time, from one thread.
#ifndef REMOE_CACHE_POLICY_H_
#define REMOE_CACHE_POLICY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace remoe {

// An expert of a layer, flat: layer_index * n_experts + expert, layers counted among MoE layers.
using ExpertId = uint32_t;
constexpr ExpertId kNoExpert = UINT32_MAX;

struct Geometry {
  int n_layers = 0;   // MoE layers
  int n_experts = 0;  // experts of a layer
  int n_slots = 0;    // experts that fit the budget, over all layers
  int total() const { return n_layers * n_experts; }
};

// kInvalidArgument where nothing could be cached so, or no model is that large: the numbers may come
// from a file that anybody wrote, and tables are made by them.
Status CheckGeometry(const Geometry& geometry);

enum class Phase : uint8_t { kPrefill, kDecode };

constexpr int kNoConversation = -1;

// One step of one layer, or a wave of it. `experts` are distinct; pointers are valid during the
// call only.
struct Event {
  int layer = 0;
  int64_t step = 0;  // counts llama_decode ubatches; equal for all layers of one
  Phase phase = Phase::kDecode;
  int n_tokens = 1;  // tokens of the step
  // Each of the step's tokens follows the one before; otherwise they belong to so many conversations.
  // Of a recorded step that was decoded it is not known, and taken to be false.
  bool in_sequence = false;
  // Whose they are, where conversations take turns; all that come after one another are kNoConversation.
  int conversation = kNoConversation;
  const uint16_t* experts = nullptr;
  int n = 0;
  // So many of `experts` are more than the cache can keep of a long prompt's layer: once the event
  // has ended they leave before any victim that the policy names. They are the first ones, or
  // those that Policy::LeastFirst() says; these are like all others once the prompt is over.
  int n_expendable = 0;
  // [n_tokens][top_k] which token took what, of the whole step; null where it is not known. One
  // token's are its experts.
  const uint16_t* ids = nullptr;
  int top_k = 0;
  // [n_prob_tokens][n_experts] router probabilities of the step's last tokens, or null.
  const float* probs = nullptr;
  int n_prob_tokens = 0;
  // More of the experts of the step and layer that the event before was of: a later wave, or the
  // same experts again for another piece of the FFN. Not news to the policy.
  bool continued = false;
  // [n] index of the layer's next event with that expert, kNever where there is none. Only a replay
  // knows it, and only the oracle reads it; null in the live engine.
  const int64_t* next_use = nullptr;
};

constexpr int64_t kNever = INT64_MAX;

// A prompt's tokens beyond its last ones say little about what decoding needs: policies look at no
// more than these of a step.
constexpr int kRecentTokens = 64;

// The resident experts that may leave, oldest unpin first. An intrusive doubly linked list over
// expert ids: O(1) add and remove, no allocation after construction.
class EvictableList {
 public:
  explicit EvictableList(int total);
  bool empty() const { return size_ == 0; }
  int size() const { return size_; }
  bool Contains(ExpertId id) const { return in_[id]; }
  ExpertId front() const { return next_[sentinel_]; }  // REQUIRES: !empty()
  ExpertId Next(ExpertId id) const {                   // kNoExpert at the end
    return next_[id] == sentinel_ ? kNoExpert : next_[id];
  }
  void PushBack(ExpertId id);   // REQUIRES: !Contains(id)
  void PushFront(ExpertId id);  // REQUIRES: !Contains(id)
  void Remove(ExpertId id);     // REQUIRES: Contains(id)

 private:
  void Link(ExpertId before, ExpertId id);
  std::vector<ExpertId> next_, prev_;
  std::vector<bool> in_;
  ExpertId sentinel_;
  int size_ = 0;
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual const char* name() const = 0;
  // Whether Event::probs would be looked at.
  virtual bool uses_probabilities() const { return false; }

  // What is expected of the prompt about to run: `bonus` [n_layers][n_experts], in the units of the
  // policy's scores, is added to what it makes of the past, until the next call; null for nothing.
  // RETURNS: false where the policy has no use for it.
  virtual bool Expect(const float* bonus) { return false; }

  // What it makes of each expert, by id: a logit for being used soon. RETURNS: false where the policy
  // has no such number.
  virtual bool Scores(std::vector<float>* scores) const { return false; }

  // Called once per event that is not `continued`, before its hits and evictions.
  virtual void OnEvent(const Event& event) {}
  // `id` was resident when its event came. It is off the evictable list until the event ends.
  virtual void OnHit(ExpertId id) {}
  // `id` is missing and comes next; where no slot is free, Victim() is asked for one right after.
  virtual void OnMiss(ExpertId id) {}
  // `id` now has a slot. Called before the read that fills it has ended.
  virtual void OnInsert(ExpertId id) {}
  // `id` lost its slot: chosen as victim, or its read failed.
  virtual void OnEvict(ExpertId id) {}
  // Puts those of the event's experts in front that are the least worth keeping. RETURNS: false
  // where the policy cannot tell a prompt's experts apart, and does nothing. REQUIRES: the event is
  // the last that OnEvent() heard of, or continues it.
  virtual bool LeastFirst(int layer, uint16_t* experts, int n) { return false; }
  // The cache has so many slots from now on; those that do not fit any more are evicted next.
  virtual void OnResize(int n_slots) {}
  // Called when the event's experts are no longer pinned and are back on the evictable list.
  // Experts whose read failed are not among event.experts.
  virtual void OnEventEnd(const Event& event) {}
  // Names the expert that leaves next. REQUIRES: !evictable.empty(). RETURNS: a member of it.
  virtual ExpertId Victim(const EvictableList& evictable) = 0;
};

class Profile;

// Makes the policy of that name ("lru", ...), or kInvalidArgument naming the known ones. A profile
// of another geometry is kInvalidArgument too; policies that learn nothing ignore it. "belady"
// needs Event::next_use and is for replays only.
Result<std::unique_ptr<Policy>> MakePolicy(const std::string& name, const Geometry& geometry,
                                           std::shared_ptr<const Profile> profile = nullptr);
// Every name, the oracle included; and those that a live engine can run.
std::vector<std::string> PolicyNames();
std::vector<std::string> LivePolicyNames();

}  // namespace remoe

#endif  // REMOE_CACHE_POLICY_H_

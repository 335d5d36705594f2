// VictimHeap: evictable experts by rank, the lowest on top; equal ranks by age, the oldest first.
//
// An indexed binary heap over expert ids: push, remove and top without allocation after
// construction. For policies whose ranks stand still while an expert is not used, so that nothing
// is re-sorted. Not thread-safe: as the policy that owns it, called from one thread.
#ifndef REMOE_CACHE_VICTIM_HEAP_H_
#define REMOE_CACHE_VICTIM_HEAP_H_

#include <utility>
#include <vector>

#include "cache/policy.h"

namespace remoe {

class VictimHeap {
 public:
  explicit VictimHeap(int total) : at_(total, kAbsent) { nodes_.reserve(total); }

  bool Contains(ExpertId id) const { return at_[id] != kAbsent; }
  bool empty() const { return nodes_.empty(); }
  ExpertId top() const { return nodes_.front().id; }  // REQUIRES: !empty()

  // REQUIRES: !Contains(id).
  void Push(ExpertId id, double rank) {
    nodes_.push_back({rank, ++pushed_, id});
    Up(nodes_.size() - 1);
  }
  // Does nothing when it is not there.
  void Remove(ExpertId id) {
    if (!Contains(id)) return;
    const size_t hole = at_[id];
    at_[id] = kAbsent;
    const Node last = nodes_.back();
    nodes_.pop_back();
    if (hole == nodes_.size()) return;
    nodes_[hole] = last;
    Up(hole);
    Down(at_[last.id]);
  }

 private:
  struct Node {
    double rank;
    uint64_t age;
    ExpertId id;
    bool operator<(const Node& other) const {
      return rank != other.rank ? rank < other.rank : age < other.age;
    }
  };
  static constexpr size_t kAbsent = SIZE_MAX;

  void Up(size_t i) {
    const Node node = nodes_[i];
    while (i > 0 && node < nodes_[(i - 1) / 2]) {
      Put(i, nodes_[(i - 1) / 2]);
      i = (i - 1) / 2;
    }
    Put(i, node);
  }
  void Down(size_t i) {
    const Node node = nodes_[i];
    for (;;) {
      size_t child = 2 * i + 1;
      if (child >= nodes_.size()) break;
      if (child + 1 < nodes_.size() && nodes_[child + 1] < nodes_[child]) child++;
      if (!(nodes_[child] < node)) break;
      Put(i, nodes_[child]);
      i = child;
    }
    Put(i, node);
  }
  void Put(size_t i, const Node& node) {
    nodes_[i] = node;
    at_[node.id] = i;
  }

  std::vector<Node> nodes_;
  std::vector<size_t> at_;  // by expert id
  uint64_t pushed_ = 0;
};

}  // namespace remoe

#endif  // REMOE_CACHE_VICTIM_HEAP_H_

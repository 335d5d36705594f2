// PeerLines: what the user should hear of peers, until somebody takes it.
//
// Of each thing that is said again and again (that a peer comes and goes, that it is late) the last line
// is kept. Nothing grows while nobody takes them, such as an engine that nobody asks anything.
//
// A plain value. One thread at a time.
#ifndef REMOE_REMOTE_PEER_LINES_H_
#define REMOE_REMOTE_PEER_LINES_H_

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace remoe {

struct PeerLine {
  std::string about;  // a later line about the same says how it stands now
  std::string text;
};

class PeerLines {
 public:
  // Addresses of functions change, so that there is no end of them.
  static constexpr size_t kMost = 256;

  void Add(PeerLine line) {
    lines_.erase(std::remove_if(lines_.begin(), lines_.end(),
                                [&](const PeerLine& each) { return each.about == line.about; }),
                 lines_.end());
    if (lines_.size() == kMost) lines_.erase(lines_.begin());
    lines_.push_back(std::move(line));
  }
  // In the order in which they were said, those of the last call no more.
  std::vector<PeerLine> Take() { return std::exchange(lines_, {}); }

 private:
  std::vector<PeerLine> lines_;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_PEER_LINES_H_

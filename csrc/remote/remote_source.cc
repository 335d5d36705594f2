#include "remote/remote_source.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/format.h"

namespace remoe {

RemoteSource::RemoteSource(const std::vector<Address>& addresses, Identity identity,
                           std::unique_ptr<RowComputer> computer, const Settings& settings)
    : settings_(settings), proof_(std::move(identity), std::move(computer)) {
  Peer::Links links;
  links.proof = &proof_;
  links.tallies = &tallies_;
  links.tell = [this](const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.push_back(line);
  };
  links.audit = [this](Peer* peer, Audit audit) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (audit_.has_value()) return;
      audit_.emplace(peer, std::move(audit));
    }
    changed_.notify_one();
  };
  for (const Address& address : addresses) {
    peers_.push_back(std::make_unique<Peer>(address, links));
  }
  auditor_ = std::thread([this] { AuditAll(); });
}

RemoteSource::~RemoteSource() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  auditor_.join();
  peers_.clear();
}

void RemoteSource::Begin(const Demand& demand, std::vector<bool>* taken) {
  if (demand.n_tokens > settings_.max_tokens || demand.rows == nullptr) return;
  recipe_.clear();
  demand.rows->Describe(&recipe_);
  if (recipe_.empty()) return;
  const int n_known = proof_.n_recipes();
  const int recipe = proof_.Find(demand.layer, recipe_);
  if (recipe < 0) return;
  if (recipe >= n_known) {
    for (const auto& peer : peers_) peer->Notice();
  }
  for (size_t i = 0; i < demand.experts->size(); i++) {
    const Placement& placement = (*demand.experts)[i];
    if ((*taken)[i] || placement.hit || placement.prefetched) continue;
    const uint16_t expert = placement.expert;
    const int n_rows = demand.rows->n_rows(expert);
    Peer* least = nullptr;
    int least_load = 0;
    for (const auto& peer : peers_) {
      const int load = peer->Load(recipe, demand.layer, expert, n_rows);
      if (load < 0 || (least != nullptr && load >= least_load)) continue;
      least = peer.get();
      least_load = load;
    }
    if (least == nullptr) continue;
    Peer::Wanted wanted;
    wanted.recipe = recipe;
    wanted.layer = demand.layer;
    wanted.expert = expert;
    wanted.n_rows = n_rows;
    wanted.rows.resize(static_cast<size_t>(n_rows * demand.rows->n_in()));
    demand.rows->Gather(expert, wanted.rows.data());
    wanted.arrivals = demand.arrivals;
    wanted.ticket = demand.ticket;
    n_asked_++;
    wanted.audit = n_asked_ % static_cast<uint64_t>(settings_.audit_every) == 0;
    (*taken)[i] = least->Ask(std::move(wanted));
  }
}

bool RemoteSource::Await(int timeout_ms) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    const bool all =
        std::all_of(peers_.begin(), peers_.end(), [](const auto& peer) { return peer->settled(); });
    if (all || std::chrono::steady_clock::now() > until) return all;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

std::vector<Peer::Seen> RemoteSource::peers() const {
  std::vector<Peer::Seen> seen;
  for (const auto& peer : peers_) seen.push_back(peer->seen());
  return seen;
}

std::vector<std::string> RemoteSource::TakeLines() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(lines_, {});
}

void RemoteSource::AuditAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return audit_.has_value() || ending_; });
    if (ending_) return;
    const std::pair<Peer*, Audit> audit = *audit_;
    lock.unlock();
    Check(audit.first, audit.second);
    lock.lock();
    audit_.reset();
  }
}

void RemoteSource::Check(Peer* peer, const Audit& audit) {
  std::vector<float> ours;
  const Status status =
      proof_.computer()->Compute(proof_.recipe(audit.recipe).learned.recipe, audit.expert,
                                 audit.n_rows, audit.rows.data(), &ours);
  // Storage that fails is told by the step that needs it; it proves nothing about a peer.
  if (!status.ok()) return;
  tallies_.audited++;
  if (ours.size() == audit.answer.size() &&
      std::memcmp(ours.data(), audit.answer.data(), ours.size() * sizeof(float)) == 0) {
    return;
  }
  tallies_.mismatches++;
  peer->Refuse(Format("its answer for %s had other bits; answers since the last audit may be wrong",
                      proof_.computer()->Name(audit.layer, audit.expert).c_str()));
}

}  // namespace remoe

#include "remote/remote_source.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/format.h"

namespace remoe {

RemoteSource::RemoteSource(const std::vector<Address>& addresses, Identity identity,
                           std::unique_ptr<RowComputer> computer, const Settings& settings)
    : settings_(settings), proof_(std::move(identity), std::move(computer)) {
  SetPeers(addresses);
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
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  if (recipe >= n_known) {
    for (const Linked& linked : peers_) linked.peer->Notice();
  }
  for (size_t i = 0; i < demand.experts->size(); i++) {
    const Placement& placement = (*demand.experts)[i];
    if ((*taken)[i] || placement.hit || placement.prefetched) continue;
    const uint16_t expert = placement.expert;
    const int n_rows = demand.rows->n_rows(expert);
    Peer* least = nullptr;
    int least_load = 0;
    for (const Linked& linked : peers_) {
      const int load = linked.peer->Load(recipe, demand.layer, expert, n_rows);
      if (load < 0 || (least != nullptr && load >= least_load)) continue;
      least = linked.peer.get();
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
  const auto all_settled = [this] {
    const std::lock_guard<std::mutex> lock(peers_mutex_);
    return std::all_of(peers_.begin(), peers_.end(),
                       [](const Linked& linked) { return linked.peer->settled(); });
  };
  while (true) {
    const bool all = all_settled();
    if (all || std::chrono::steady_clock::now() > until) return all;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

std::vector<RemoteSource::Seen> RemoteSource::peers() const {
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  std::vector<Seen> seen;
  for (const Linked& linked : peers_) seen.push_back({linked.peer->seen(), linked.tallies->Read()});
  return seen;
}

RemoteSource::Linked RemoteSource::Link(const Address& address) {
  Linked linked;
  linked.address = address.text();
  linked.tallies = std::make_unique<RemoteTallies>();
  Peer::Links links;
  links.proof = &proof_;
  links.tallies = linked.tallies.get();
  links.hedge = settings_.hedge;
  links.tell = [this](const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.push_back(line);
  };
  links.audit = [this](std::weak_ptr<Peer> peer, Audit audit) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (audit_.has_value()) return;
      audit_.emplace(std::move(peer), std::move(audit));
    }
    changed_.notify_one();
  };
  linked.peer = std::make_shared<Peer>(address, links);
  return linked;
}

void RemoteSource::SetPeers(const std::vector<Address>& addresses) {
  std::vector<Linked> gone;
  {
    const std::lock_guard<std::mutex> lock(peers_mutex_);
    std::vector<Linked> kept;
    for (const Address& address : addresses) {
      const auto same = [&](const Linked& linked) { return linked.address == address.text(); };
      if (std::any_of(kept.begin(), kept.end(), same)) continue;
      const auto found = std::find_if(peers_.begin(), peers_.end(), same);
      if (found == peers_.end()) {
        kept.push_back(Link(address));
      } else {
        kept.push_back(std::move(*found));
        peers_.erase(found);
      }
    }
    gone = std::exchange(peers_, std::move(kept));
  }
  // Ending a peer waits for its thread, which a step must not wait for.
  for (Linked& linked : gone) {
    linked.peer.reset();
    const std::lock_guard<std::mutex> lock(peers_mutex_);
    tallies_.Add(linked.tallies->Read());
  }
}

RemoteCounts RemoteSource::counts() const {
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  RemoteTallies sum;
  sum.Add(tallies_.Read());
  for (const Linked& linked : peers_) sum.Add(linked.tallies->Read());
  return sum.Read();
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
    const std::pair<std::weak_ptr<Peer>, Audit> audit = *audit_;
    lock.unlock();
    Check(audit.first, audit.second);
    lock.lock();
    audit_.reset();
  }
}

void RemoteSource::Check(const std::weak_ptr<Peer>& audited, const Audit& audit) {
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
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  for (const Linked& linked : peers_) {  // not one that is gone: its tallies may be, too
    if (audited.owner_before(linked.peer) || linked.peer.owner_before(audited)) continue;
    linked.peer->Refuse(
        Format("its answer for %s had other bits; answers since the last audit may be wrong",
               proof_.computer()->Name(audit.layer, audit.expert).c_str()));
  }
}

}  // namespace remoe

#include "remote/remote_source.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "base/thread.h"
#include "wire/checksum.h"

namespace remoe {

namespace {

constexpr auto kPlaceEvery = std::chrono::seconds(1);
constexpr double kMostSaved = 2;  // seconds of allowance
constexpr double kSlow = 4;       // a peer is too slow that takes so many times storage's time
constexpr int64_t kNeverSlowUs = 10000;
constexpr uint64_t kTryEvery = 16;

}  // namespace

Result<std::unique_ptr<RemoteSource>> RemoteSource::Make(const std::vector<Address>& addresses,
                                                         std::shared_ptr<const TlsKeys> keys,
                                                         Identity identity,
                                                         std::unique_ptr<RowComputer> computer,
                                                         Local local, const Settings& settings) {
  std::unique_ptr<RemoteSource> made(new RemoteSource(
      std::move(keys), std::move(identity), std::move(computer), std::move(local), settings));
  REMOE_RETURN_IF_ERROR(
      StartThread("checks peers", [source = made.get()] { source->CheckAll(); }, &made->checker_));
  made->SetPeers(addresses);
  for (PeerReader* reader : {made->local_.reader, made->local_.checking}) {
    if (reader != nullptr) reader->SetPeers(made.get());
  }
  return made;
}

RemoteSource::RemoteSource(std::shared_ptr<const TlsKeys> keys, Identity identity,
                           std::unique_ptr<RowComputer> computer, Local local,
                           const Settings& settings)
    : settings_(settings),
      local_(std::move(local)),
      keys_(std::move(keys)),
      proof_(std::move(identity), std::move(computer)),
      placement_(static_cast<int>(local_.expert_bytes.size()), local_.n_experts),
      placed_(Clock::now()),
      refilled_(placed_) {}

RemoteSource::~RemoteSource() {
  for (PeerReader* reader : {local_.reader, local_.checking}) {
    if (reader != nullptr) reader->SetPeers(nullptr);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  if (checker_.joinable()) checker_.join();
  End(&peers_);
}

RemoteSource::Linked RemoteSource::Link(const Address& address) {
  Linked linked;
  linked.address = address.text();
  linked.tallies = std::make_shared<RemoteTallies>();
  Peer::Links links;
  links.proof = &proof_;
  links.tallies = linked.tallies;
  links.keys = keys_;
  links.has_copy = local_.has_experts;
  links.hedge = settings_.hedge;
  links.tell = [this](PeerLine line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.Add(std::move(line));
  };
  links.audit = [this](std::weak_ptr<Peer> peer, Audit audit) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (audit_.has_value()) return;
      audit_.emplace(std::move(peer), std::move(audit));
    }
    changed_.notify_one();
  };
  links.check = [this](std::weak_ptr<Peer> peer, const ServedExpert& expert) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      announced_.emplace_back(std::move(peer), expert);
    }
    changed_.notify_one();
  };
  linked.peer = std::make_shared<Peer>(address, links);
  linked.peer->Start();
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
  End(&gone);
}

void RemoteSource::End(std::vector<Linked>* gone) {
  for (const Linked& linked : *gone) linked.peer->Stop();  // one need not wait for another's end
  for (Linked& linked : *gone) {
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

// RETURNS: -1 where the layer cannot be computed elsewhere.
int RemoteSource::RecipeOf(const Demand& demand, bool* is_new) {
  recipe_.clear();
  demand.rows->Describe(&recipe_);
  if (recipe_.empty()) return -1;
  const int n_known = proof_.n_recipes();
  const int recipe = proof_.Find(demand.layer, recipe_);
  *is_new = recipe >= n_known;
  return recipe;
}

Peer* RemoteSource::LeastBusy(int recipe, int layer, uint16_t expert, int n_rows) const {
  Peer* least = nullptr;
  int least_load = 0;
  for (const Linked& linked : peers_) {
    const int load = linked.peer->Load(recipe, layer, expert, n_rows);
    if (load < 0 || (least != nullptr && load >= least_load)) continue;
    least = linked.peer.get();
    least_load = load;
  }
  return least;
}

bool RemoteSource::RowsPay(const Demand& demand, const Peer& peer, int n_rows) const {
  if (demand.n_tokens <= settings_.max_tokens) return true;
  const double network = peer.bytes_per_s();
  const double storage = local_.reader != nullptr ? local_.reader->storage_bytes_per_s() : 0;
  const bool sends_weights = local_.reader != nullptr && peer.seen().sends_weights;
  double weights = local_.has_experts ? storage : 0;
  if (sends_weights) weights = std::max(weights, network);
  if (network == 0 || weights == 0) return false;
  const double rows_bytes =
      4.0 * n_rows * static_cast<double>(demand.rows->n_in() + demand.rows->n_out());
  return rows_bytes / network <= static_cast<double>(local_.expert_bytes[demand.layer]) / weights;
}

bool RemoteSource::TooSlow(int layer, Peer* peer) {
  if (!local_.has_experts || !settings_.hedge || local_.reader == nullptr) return false;
  const double rate = local_.reader->storage_bytes_per_s();
  const int64_t answer_us = peer->answer_us();
  if (rate == 0 || answer_us < kNeverSlowUs) return false;
  const double storage_us = 1e6 * static_cast<double>(local_.expert_bytes[layer]) / rate;
  if (static_cast<double>(answer_us) < kSlow * storage_us) return false;
  if (n_too_slow_++ % kTryEvery == 0) return false;  // it may have become faster
  peer->PassedBy();
  return true;
}

bool RemoteSource::Admits(int layer, int expert) {
  if (!local_.has_experts || !placement_.hot(layer, expert)) return false;
  const auto now = Clock::now();
  const double rate = static_cast<double>(settings_.move_bytes_per_s);
  const double passed = std::chrono::duration<double>(now - refilled_).count();
  refilled_ = now;
  allowance_bytes_ = std::min(allowance_bytes_ + passed * rate, kMostSaved * rate);
  const auto cost = static_cast<double>(local_.expert_bytes[layer]);
  if (allowance_bytes_ < cost) return false;
  allowance_bytes_ -= cost;
  tallies_.admitted++;
  return true;
}

void RemoteSource::Place() {
  const auto now = Clock::now();
  if (now - placed_ < kPlaceEvery || !local_.look) return;
  placed_ = now;
  local_.look(&cache_);
  placement_.Update(cache_);
  std::vector<ExpertPlacement::Offer> offers;
  for (const Linked& linked : peers_) {
    offers.push_back({linked.peer->seen().capacity, linked.peer->served()});
  }
  const auto wishes = placement_.Wishes(offers);
  for (size_t p = 0; p < peers_.size(); p++) peers_[p].peer->Wish(wishes[p]);
}

void RemoteSource::Begin(const Demand& demand, std::vector<bool>* taken) {
  if (demand.rows == nullptr) return;
  // Before the lock: learning may have to wait for weights that a peer sends.
  bool is_new = false;
  const int recipe = RecipeOf(demand, &is_new);
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  if (demand.layer == 0) Place();
  if (recipe < 0) return;
  for (const Linked& linked : peers_) {
    if (is_new) linked.peer->Notice();
  }
  for (size_t i = 0; i < demand.experts->size(); i++) {
    const Placement& placement = (*demand.experts)[i];
    if ((*taken)[i] || placement.hit || placement.prefetched) continue;
    const uint16_t expert = placement.expert;
    const int n_rows = demand.rows->n_rows(expert);
    Peer* peer = LeastBusy(recipe, demand.layer, expert, n_rows);
    if (peer == nullptr || !RowsPay(demand, *peer, n_rows)) continue;
    if (TooSlow(demand.layer, peer)) continue;
    if (demand.n_tokens == 1 && Admits(demand.layer, expert)) continue;
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
    (*taken)[i] = peer->Ask(std::move(wanted));
  }
}

double RemoteSource::ExpectedUs(const Matrix& matrix, uint64_t n_bytes) const {
  double least = -1;
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  for (const Linked& linked : peers_) {
    const int64_t load = linked.peer->FetchLoad(matrix.layer, matrix.expert);
    const double rate = linked.peer->bytes_per_s();
    if (load < 0 || rate == 0) continue;
    const double us = 1e6 * static_cast<double>(load + static_cast<int64_t>(n_bytes)) / rate;
    if (least < 0 || us < least) least = us;
  }
  return least;
}

bool RemoteSource::Fetch(const Matrix& matrix, uint64_t n_bytes, uint8_t* dest,
                         const std::function<void(const Status&)>& done) {
  if (n_bytes > UINT32_MAX) return false;
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  Peer* least = nullptr;
  int64_t least_load = 0;
  for (const Linked& linked : peers_) {
    const int64_t load = linked.peer->FetchLoad(matrix.layer, matrix.expert);
    if (load < 0 || (least != nullptr && load >= least_load)) continue;
    least = linked.peer.get();
    least_load = load;
  }
  if (least == nullptr) return false;
  Peer::Weights weights;
  weights.layer = matrix.layer;
  weights.expert = matrix.expert;
  weights.matrix = matrix.matrix;
  weights.n_bytes = static_cast<uint32_t>(n_bytes);
  weights.dest = dest;
  // It is called by the peer's own thread, or by one that refuses the peer: it is there.
  weights.done = [this, least, matrix, n_bytes, dest, done](const Status& status) {
    if (!status.ok()) {
      done(status);
      return;
    }
    Checksum64 sum;
    sum.Add(dest, n_bytes);
    if (sum.sum() == proof_.KnownSum(matrix.layer, matrix.expert, matrix.matrix)) {
      done(Status::Ok());
      return;
    }
    tallies_.mismatches++;
    const std::string why = Format("the weights it sent of %s are not those of our file",
                                   proof_.computer()->Name(matrix.layer, matrix.expert).c_str());
    least->Refuse(why);
    done(Status(Code::kIo, why));
  };
  return least->Fetch(std::move(weights));
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

int RemoteSource::n_unserved() const {
  std::set<std::pair<int, int>> served;
  const std::lock_guard<std::mutex> lock(peers_mutex_);
  for (const Linked& linked : peers_) {
    const auto its = linked.peer->served();
    served.insert(its.begin(), its.end());
  }
  const size_t total = local_.expert_bytes.size() * static_cast<size_t>(local_.n_experts);
  return static_cast<int>(total - std::min(total, served.size()));
}

std::vector<PeerLine> RemoteSource::TakeLines() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return lines_.Take();
}

void RemoteSource::CheckAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return audit_.has_value() || !announced_.empty() || ending_; });
    if (ending_) return;
    if (audit_.has_value()) {
      const std::pair<std::weak_ptr<Peer>, Audit> audit = *audit_;
      lock.unlock();
      CheckAnswer(audit.first, audit.second);
      lock.lock();
      audit_.reset();
      continue;
    }
    const auto [peer, expert] = announced_.front();
    announced_.pop_front();
    lock.unlock();
    CheckWeights(peer, expert);
    lock.lock();
  }
}

void RemoteSource::CheckAnswer(const std::weak_ptr<Peer>& audited, const Audit& audit) {
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
  const std::shared_ptr<Peer> peer = audited.lock();
  if (peer == nullptr) return;
  peer->Refuse(Format("its answer for %s had other bits; answers since the last audit may be wrong",
                      proof_.computer()->Name(audit.layer, audit.expert).c_str()));
}

void RemoteSource::CheckWeights(const std::weak_ptr<Peer>& holder, const ServedExpert& expert) {
  if (expert.expert > UINT16_MAX) return;
  const int layer = static_cast<int>(expert.layer);
  const Result<ExpertSums> ours = proof_.Sums(layer, static_cast<uint16_t>(expert.expert));
  if (!ours.ok()) return;  // storage that fails is told by the step that needs it
  const std::shared_ptr<Peer> peer = holder.lock();
  if (peer == nullptr) return;
  if (ours.value().whole == expert.sum) {
    peer->Admit(expert);
  } else {
    peer->Refuse(Format("its weights of %s are not those of our file",
                        proof_.computer()->Name(layer, static_cast<int>(expert.expert)).c_str()));
  }
}

}  // namespace remoe

// Peers of a model: the join of RemoteSource and what it checks workers with.
//
// Checking computes rows from the model's own files, with a slot, staging and biases of its own,
// beside the cache. CheckBytes() says how much that is; whoever gives the model its cache takes it
// from the budget.
//
// ConnectPeers() where AddSource() may be called; FindPeers() from any thread.
#ifndef REMOE_DEVICE_PEERS_H_
#define REMOE_DEVICE_PEERS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "device/streamed_model.h"
#include "remote/remote_source.h"

namespace remoe {

struct PeerOptions {
  std::vector<std::string> addresses;
  std::string keys;                 // path; empty for connections within this machine
  std::string engine, fingerprint;  // see IdentityOf()
  RemoteSource::Settings source;
};

uint64_t CheckBytes(const StreamedModel& model);
// Returns at once: connecting and proving goes on in the background; see RemoteSource::Await().
Status ConnectPeers(StreamedModel* model, const PeerOptions& options);
// Null where the model has no peers.
RemoteSource* FindPeers(const StreamedModel& model);

}  // namespace remoe

#endif  // REMOE_DEVICE_PEERS_H_

// LookUp: the socket addresses that a host's name stands for.
//
// The C library asks name servers, and waits for many seconds where none answers; nothing ends it
// sooner. Whoever may have to stop meanwhile says by what: the question is then put by a thread of its
// own, which is left behind where its answer is not waited for any longer, and ends by itself.
//
// From any thread.
#ifndef REMOE_REMOTE_NAME_LOOKUP_H_
#define REMOE_REMOTE_NAME_LOOKUP_H_

#include <sys/socket.h>

#include <vector>

#include "base/status.h"
#include "remote/address.h"
#include "remote/wake.h"

namespace remoe {

struct SocketAddress {
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr_storage storage{};
  socklen_t n_bytes = 0;
};

// RETURNS: all that it stands for, at least one: a board's name has an address of each kind, and its
// worker may listen on one of them alone. kCancelled once `stop` was raised; it may be null.
Result<std::vector<SocketAddress>> LookUp(const Address& address, const Wake* stop);

}  // namespace remoe

#endif  // REMOE_REMOTE_NAME_LOOKUP_H_

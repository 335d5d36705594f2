// TlsKeys: who we are and whom we believe, as one file says it; and encrypted channels made with it.
//
// The file (remoe-edge keys) holds a private key, its certificate, and the certificate of the one
// authority that both sides have. Both prove themselves: TLS 1.3, client certificates required, a
// worker's certificate is no engine's and the other way round. Names are not compared: boards change
// their addresses, and whoever has a worker's certificate of this authority is a worker.
//
// A wrapped channel is used like the one inside it. The keys are immutable and may be shared by
// threads; a channel is one thread's at a time.
#ifndef REMOE_REMOTE_TLS_H_
#define REMOE_REMOTE_TLS_H_

#include <memory>
#include <string>

#include "remote/channel.h"

namespace remoe {

class TlsKeys {
 public:
  enum class Role { kEngine, kWorker };
  // kInvalidArgument naming what the file lacks, kNotSupported without OpenSSL.
  static Result<std::shared_ptr<const TlsKeys>> Load(const std::string& path, Role role);
  ~TlsKeys();
  TlsKeys(const TlsKeys&) = delete;
  TlsKeys& operator=(const TlsKeys&) = delete;

  // The handshake goes on while the channel is read and written. Its failure is kRefused.
  Result<std::unique_ptr<Channel>> Wrap(std::unique_ptr<Channel> inside) const;

 private:
  explicit TlsKeys(Role role) : role_(role) {}
  const Role role_;
  void* context_ = nullptr;
};

// Connects as ConnectTcp() does, and shakes hands where there are keys; they may be null. Waits at most
// that long for each.
Result<std::unique_ptr<Channel>> Connect(const Address& address, const TlsKeys* keys,
                                         int timeout_ms, const Wake* stop = nullptr);

}  // namespace remoe

#endif  // REMOE_REMOTE_TLS_H_

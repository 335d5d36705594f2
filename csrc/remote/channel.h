// Channel: a connection as bytes that come and go, without waiting.
//
// What a transport has to offer, so that another one (TLS, gRPC) is one more file. Waiting is done
// by poll() on fd(), the same for all.
//
// A listener hands out channels. Closed with its owner; one thread at a time.
#ifndef REMOE_REMOTE_CHANNEL_H_
#define REMOE_REMOTE_CHANNEL_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "remote/address.h"
#include "remote/wake.h"

namespace remoe {

class Channel {
 public:
  static constexpr size_t kLeastRead = 16 << 10;
  virtual ~Channel() = default;
  virtual int fd() const = 0;
  // RETURNS: the bytes moved, 0 when none can be moved now. Fails where the other end is gone, with
  // kRefused where the ends will never understand each other. REQUIRES: n >= kLeastRead.
  virtual Result<size_t> Read(uint8_t* bytes, size_t n) = 0;
  virtual Result<size_t> Write(const uint8_t* bytes, size_t n) = 0;
  // Drops what has come, whatever it is. Fails where the other end is gone. A connection that is
  // closed over bytes that nobody has read loses what was said last.
  virtual Status Discard() = 0;
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual int fd() const = 0;
  virtual uint16_t port() const = 0;
  // RETURNS: null when nobody waits.
  virtual Result<std::unique_ptr<Channel>> Accept() = 0;
};

// Of a name with several addresses: at the first that this machine has.
Result<std::unique_ptr<Listener>> ListenTcp(const Address& address);
// Waits at most that long for the connection, to the first of a name's addresses that takes it. Looking
// the name up comes before that. kCancelled once `stop` was raised; it may be null.
Result<std::unique_ptr<Channel>> ConnectTcp(const Address& address, int timeout_ms,
                                            const Wake* stop = nullptr);
// Waits for poll()'s events on a channel; a signal cuts no wait short. kIo with the text `late` after
// `until`, kCancelled once `stop` was raised; it may be null.
Status AwaitChannel(const Channel& channel, short events,
                    std::chrono::steady_clock::time_point until, const Wake* stop,
                    const char* late);

}  // namespace remoe

#endif  // REMOE_REMOTE_CHANNEL_H_

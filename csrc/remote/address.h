// Address: where a worker listens, as HOST:PORT.
//
// Without keys only addresses of this machine are taken: whoever can reach a port could read a
// conversation's activations, or answer wrongly. What is refused says so, and names the way out.
// Names are looked up when a connection is made, not here, but for localhost.
//
// A plain value. Any thread.
#ifndef REMOE_REMOTE_ADDRESS_H_
#define REMOE_REMOTE_ADDRESS_H_

#include <cstdint>
#include <string>

#include "base/status.h"

namespace remoe {

struct Address {
  std::string host;  // a number (127.0.0.1, ::1), or a name
  uint16_t port = 0;

  // kInvalidArgument for what is no HOST:PORT.
  static Result<Address> Parse(const std::string& text);
  // kNotSupported beyond this machine without keys.
  Status CheckKeys(bool has_keys) const;
  bool on_this_machine() const;
  bool is_number() const;  // and no name that has to be looked up
  std::string text() const;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_ADDRESS_H_

// Address: where a worker listens, as HOST:PORT.
//
// Until connections are encrypted, only addresses of this machine are taken: whoever can reach a
// port could read a conversation's activations, or answer wrongly. What is refused says so, and
// names the way out (a tunnel that ends on this machine).
//
// A plain value; no name is looked up but localhost. Any thread.
#ifndef REMOE_REMOTE_ADDRESS_H_
#define REMOE_REMOTE_ADDRESS_H_

#include <cstdint>
#include <string>

#include "base/status.h"

namespace remoe {

struct Address {
  std::string host;  // a number: 127.0.0.1, ::1
  uint16_t port = 0;

  // kInvalidArgument for what is no HOST:PORT, kNotSupported beyond this machine.
  static Result<Address> Parse(const std::string& text);
  std::string text() const;
};

}  // namespace remoe

#endif  // REMOE_REMOTE_ADDRESS_H_

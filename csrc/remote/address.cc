#include "remote/address.h"

#include <arpa/inet.h>

#include <cstdlib>

#include "base/format.h"

namespace remoe {

namespace {

constexpr char kNameLetters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";

bool IsNumber(const std::string& host) {
  in6_addr any{};
  return inet_pton(AF_INET, host.c_str(), &any) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &any) == 1;
}

bool IsLoopback(const std::string& host) {
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6{};
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

}  // namespace

Result<Address> Address::Parse(const std::string& text) {
  const size_t colon = text.rfind(':');
  const std::string port = colon == std::string::npos ? "" : text.substr(colon + 1);
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  const bool digits = !port.empty() && port.size() <= 5 &&
                      port.find_first_not_of("0123456789") == std::string::npos;
  const int number = digits ? std::atoi(port.c_str()) : -1;
  if (host.empty() || number < 0 || number > 65535) {
    return Status(
        Code::kInvalidArgument,
        Format("'%s' is no address: write HOST:PORT, for example 127.0.0.1:7700", text.c_str()));
  }
  if (host == "localhost") host = "127.0.0.1";
  if (!IsNumber(host) && host.find_first_not_of(kNameLetters) != std::string::npos) {
    return Status(Code::kInvalidArgument,
                  Format("'%s' is no address: there is no such host name", text.c_str()));
  }
  return Address{host, static_cast<uint16_t>(number)};
}

bool Address::is_number() const {
  return IsNumber(host);
}

bool Address::on_this_machine() const {
  return IsLoopback(host);
}

Status Address::CheckKeys(bool has_keys) const {
  if (has_keys || on_this_machine()) return Status::Ok();
  return Status(Code::kNotSupported,
                Format("%s is beyond this machine, and connections there are encrypted: make keys "
                       "with `remoe-edge keys` and name them with --keys, or use 127.0.0.1",
                       this->text().c_str()));
}

std::string Address::text() const {
  const bool v6 = host.find(':') != std::string::npos;
  return Format(v6 ? "[%s]:%d" : "%s:%d", host.c_str(), port);
}

}  // namespace remoe

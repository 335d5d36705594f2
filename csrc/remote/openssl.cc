#include "remote/openssl.h"

#include <dlfcn.h>

#include "base/format.h"

namespace remoe {

namespace {

constexpr const char* kLibraries[][2] = {{"libssl.so.3", "libcrypto.so.3"},
                                         {"libssl.so.1.1", "libcrypto.so.1.1"}};

struct Found {
  OpenSsl functions;
  Status status;
};

template <typename Function>
bool Load(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

Found Look() {
  Found found;
  for (const auto& [ssl_name, crypto_name] : kLibraries) {
    void* ssl = dlopen(ssl_name, RTLD_NOW | RTLD_LOCAL);
    void* crypto = ssl != nullptr ? dlopen(crypto_name, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (crypto == nullptr) continue;
    const char* missing = nullptr;
#define REMOE_LOAD(library, name) \
  if (!Load(library, #name, &found.functions.name)) missing = #name;
#define REMOE_LOAD_SSL(name, returns, takes) REMOE_LOAD(ssl, name)
#define REMOE_LOAD_CRYPTO(name, returns, takes) REMOE_LOAD(crypto, name)
    REMOE_OPENSSL_SSL(REMOE_LOAD_SSL)
    REMOE_OPENSSL_CRYPTO(REMOE_LOAD_CRYPTO)
    if (missing == nullptr) return found;
    found.status = Status(Code::kNotSupported, Format("%s has no %s", ssl_name, missing));
    return found;
  }
  found.status = Status(Code::kNotSupported,
                        "OpenSSL is not installed (libssl.so.3 or libssl.so.1.1): connections "
                        "beyond this machine need it");
  return found;
}

}  // namespace

Result<const OpenSsl*> OpenSsl::Find() {
  static const Found found = Look();
  if (!found.status.ok()) return found.status;
  return &found.functions;
}

}  // namespace remoe

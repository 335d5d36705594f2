// OpenSsl: the system's OpenSSL 1.1.1 or 3, found while running.
//
// Its headers are on few machines, its library on nearly all: Python's own ssl uses it. So nothing
// is linked, a wheel runs with whichever is there, and where none is, only connections within this
// machine work. The functions are those of OpenSSL's stable interface, by their own names; the few
// numbers that its headers define as macros are in tls.cc.
//
// Looked for once; what Find() returns is never freed and never changes. Any thread.
#ifndef REMOE_REMOTE_OPENSSL_H_
#define REMOE_REMOTE_OPENSSL_H_

#include <string>

#include "base/status.h"

namespace remoe {

// FUNCTION(name, what it returns, what it takes)
#define REMOE_OPENSSL_SSL(FUNCTION)                                               \
  FUNCTION(TLS_client_method, const void*, ())                                    \
  FUNCTION(TLS_server_method, const void*, ())                                    \
  FUNCTION(SSL_CTX_new, void*, (const void*))                                     \
  FUNCTION(SSL_CTX_free, void, (void*))                                           \
  FUNCTION(SSL_CTX_ctrl, long, (void*, int, long, void*))                         \
  FUNCTION(SSL_CTX_set_num_tickets, int, (void*, size_t))                         \
  FUNCTION(SSL_CTX_use_certificate_chain_file, int, (void*, const char*))         \
  FUNCTION(SSL_CTX_use_PrivateKey_file, int, (void*, const char*, int))           \
  FUNCTION(SSL_CTX_load_verify_locations, int, (void*, const char*, const char*)) \
  FUNCTION(SSL_CTX_set_verify, void, (void*, int, int (*)(int, void*)))           \
  FUNCTION(SSL_new, void*, (void*))                                               \
  FUNCTION(SSL_free, void, (void*))                                               \
  FUNCTION(SSL_set_bio, void, (void*, void*, void*))                              \
  FUNCTION(SSL_set_accept_state, void, (void*))                                   \
  FUNCTION(SSL_set_connect_state, void, (void*))                                  \
  FUNCTION(SSL_do_handshake, int, (void*))                                        \
  FUNCTION(SSL_read, int, (void*, void*, int))                                    \
  FUNCTION(SSL_write, int, (void*, const void*, int))                             \
  FUNCTION(SSL_get_error, int, (const void*, int))                                \
  FUNCTION(SSL_get_verify_result, long, (const void*))
#define REMOE_OPENSSL_CRYPTO(FUNCTION)                                         \
  FUNCTION(BIO_meth_new, void*, (int, const char*))                            \
  FUNCTION(BIO_meth_set_write, int, (void*, int (*)(void*, const char*, int))) \
  FUNCTION(BIO_meth_set_read, int, (void*, int (*)(void*, char*, int)))        \
  FUNCTION(BIO_meth_set_ctrl, int, (void*, long (*)(void*, int, long, void*))) \
  FUNCTION(BIO_new, void*, (const void*))                                      \
  FUNCTION(BIO_set_data, void, (void*, void*))                                 \
  FUNCTION(BIO_get_data, void*, (void*))                                       \
  FUNCTION(BIO_set_init, void, (void*, int))                                   \
  FUNCTION(BIO_set_flags, void, (void*, int))                                  \
  FUNCTION(BIO_clear_flags, void, (void*, int))                                \
  FUNCTION(ERR_peek_error, unsigned long, ())                                  \
  FUNCTION(ERR_clear_error, void, ())                                          \
  FUNCTION(ERR_reason_error_string, const char*, (unsigned long))              \
  FUNCTION(X509_verify_cert_error_string, const char*, (long))                 \
  FUNCTION(OpenSSL_version, const char*, (int))

struct OpenSsl {
#define REMOE_OPENSSL_FIELD(name, returns, takes) returns(*name) takes = nullptr;
  REMOE_OPENSSL_SSL(REMOE_OPENSSL_FIELD)
  REMOE_OPENSSL_CRYPTO(REMOE_OPENSSL_FIELD)
#undef REMOE_OPENSSL_FIELD

  // kNotSupported, saying what is missing, where there is none.
  static Result<const OpenSsl*> Find();
  std::string version() const { return OpenSSL_version(0); }
};

}  // namespace remoe

#endif  // REMOE_REMOTE_OPENSSL_H_

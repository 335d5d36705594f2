#include "remote/tls.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/format.h"
#include "remote/openssl.h"

namespace remoe {

namespace {

// What OpenSSL's headers define as macros.
constexpr int kFilePem = 1;  // SSL_FILETYPE_PEM
constexpr int kCtrlMode = 33, kCtrlMinVersion = 123, kCtrlSessionCache = 44;
constexpr long kModes = 1 | 2;  // partial writes, from a buffer that may move
constexpr long kTls13 = 0x0304;
constexpr int kVerifyBoth = 1 | 2;  // SSL_VERIFY_PEER, and fail without a certificate
constexpr int kWantRead = 2, kWantWrite = 3, kZeroReturn = 6;
constexpr int kRetryRead = 1 | 8, kRetryWrite = 2 | 8, kRetryFlags = 15;
constexpr int kCtrlFlush = 11;       // BIO_CTRL_FLUSH
constexpr int kFirstAlert = 1000;    // reasons from here on came from the other side
constexpr int kSourceSink = 0x0400;  // BIO_TYPE_SOURCE_SINK

const OpenSsl& Ssl() {
  return *OpenSsl::Find().value();
}

std::string Reason() {
  const unsigned long error = Ssl().ERR_peek_error();
  const char* text = Ssl().ERR_reason_error_string(error);
  return text != nullptr ? text : "no reason given";
}

// --- the inner channel, as OpenSSL reads and writes it ---

int BioMoved(void* bio, const Result<size_t>& moved, int retry) {
  Ssl().BIO_clear_flags(bio, kRetryFlags);
  if (!moved.ok()) return -1;
  if (moved.value() > 0) return static_cast<int>(moved.value());
  Ssl().BIO_set_flags(bio, retry);
  return -1;
}

int BioRead(void* bio, char* bytes, int n) {
  auto* inside = static_cast<Channel*>(Ssl().BIO_get_data(bio));
  return BioMoved(bio, inside->Read(reinterpret_cast<uint8_t*>(bytes), static_cast<size_t>(n)),
                  kRetryRead);
}

int BioWrite(void* bio, const char* bytes, int n) {
  auto* inside = static_cast<Channel*>(Ssl().BIO_get_data(bio));
  return BioMoved(bio,
                  inside->Write(reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(n)),
                  kRetryWrite);
}

long BioControl(void*, int command, long, void*) {
  return command == kCtrlFlush ? 1 : 0;
}

const void* BioMethod() {
  static const void* const method = [] {
    void* made = Ssl().BIO_meth_new(kSourceSink, "channel");
    Ssl().BIO_meth_set_read(made, BioRead);
    Ssl().BIO_meth_set_write(made, BioWrite);
    Ssl().BIO_meth_set_ctrl(made, BioControl);
    return made;
  }();
  return method;
}

class TlsChannel : public Channel {
 public:
  TlsChannel(std::unique_ptr<Channel> inside, void* session)
      : inside_(std::move(inside)), session_(session) {
    void* bio = Ssl().BIO_new(BioMethod());
    Ssl().BIO_set_data(bio, inside_.get());
    Ssl().BIO_set_init(bio, 1);
    Ssl().SSL_set_bio(session_, bio, bio);
  }
  ~TlsChannel() override { Ssl().SSL_free(session_); }
  int fd() const override { return inside_->fd(); }

  // Whole records only (16 KiB at most), so that poll() never sleeps over bytes that are decrypted already.
  Result<size_t> Read(uint8_t* bytes, size_t n) override {
    size_t got = 0;
    while (n - got >= Channel::kLeastRead) {
      Ssl().ERR_clear_error();
      const int result = Ssl().SSL_read(session_, bytes + got, static_cast<int>(n - got));
      if (result <= 0) {
        const Status status = Failure(result);
        if (!status.ok() && got == 0) return status;
        break;
      }
      got += static_cast<size_t>(result);
    }
    if (got > 0) shaken_ = true;
    return got;
  }
  Result<size_t> Write(const uint8_t* bytes, size_t n) override {
    Ssl().ERR_clear_error();
    const int result =
        Ssl().SSL_write(session_, bytes, static_cast<int>(std::min<size_t>(n, 1u << 20)));
    if (result > 0) return static_cast<size_t>(result);
    const Status status = Failure(result);
    if (!status.ok()) return status;
    return size_t{0};
  }
  Status Discard() override { return inside_->Discard(); }
  // RETURNS: whether the handshake is over as far as we know: the other side may still refuse us.
  Result<bool> Shake(short* wants) {
    Ssl().ERR_clear_error();
    const int result = Ssl().SSL_do_handshake(session_);
    if (result == 1) return true;
    const int error = Ssl().SSL_get_error(session_, result);
    *wants = error == kWantWrite ? POLLOUT : POLLIN;
    const Status status = Failure(result);
    if (!status.ok()) return status;
    return false;
  }

 private:
  Status Failure(int result) {
    const int error = Ssl().SSL_get_error(session_, result);
    if (error == kWantRead || error == kWantWrite) return Status::Ok();
    if (error == kZeroReturn) return Status(Code::kIo, "the other end closed the connection");
    const unsigned long queued = Ssl().ERR_peek_error();
    if (queued == 0) {
      return Status(Code::kIo, shaken_ ? "the connection was lost"
                                       : "the other end closed the connection in the handshake: "
                                         "does it use keys as well?");
    }
    const int reason = static_cast<int>(queued & 0xfff);
    const long verified = Ssl().SSL_get_verify_result(session_);
    if (verified != 0) {
      return Status(Code::kRefused, Format("its certificate is refused: %s",
                                           Ssl().X509_verify_cert_error_string(verified)));
    }
    if (reason >= kFirstAlert) {
      return Status(Code::kRefused, "it refuses our certificate: " + Reason());
    }
    if (shaken_) return Status(Code::kIo, "the connection was damaged: " + Reason());
    return Status(Code::kRefused,
                  "no encrypted connection (does it use keys as well?): " + Reason());
  }

  const std::unique_ptr<Channel> inside_;
  void* const session_;
  bool shaken_ = false;
};

}  // namespace

Result<std::shared_ptr<const TlsKeys>> TlsKeys::Load(const std::string& path, Role role) {
  const Result<const OpenSsl*> found = OpenSsl::Find();
  if (!found.ok()) return found.status();
  const OpenSsl& ssl = *found.value();
  std::shared_ptr<TlsKeys> keys(new TlsKeys(role));
  keys->context_ =
      ssl.SSL_CTX_new(role == Role::kWorker ? ssl.TLS_server_method() : ssl.TLS_client_method());
  void* context = keys->context_;
  if (context == nullptr) return Status(Code::kOutOfMemory, "no memory for keys");
  ssl.SSL_CTX_ctrl(context, kCtrlMinVersion, kTls13, nullptr);
  ssl.SSL_CTX_ctrl(context, kCtrlMode, kModes, nullptr);
  ssl.SSL_CTX_ctrl(context, kCtrlSessionCache, 0, nullptr);
  ssl.SSL_CTX_set_num_tickets(context, 0);
  ssl.SSL_CTX_set_verify(context, kVerifyBoth, nullptr);
  const auto refuse = [&](const char* what) {
    return Status(Code::kInvalidArgument,
                  Format("%s holds no %s (%s): make it with `remoe-edge keys`", path.c_str(), what,
                         Reason().c_str()));
  };
  ssl.ERR_clear_error();
  if (ssl.SSL_CTX_use_certificate_chain_file(context, path.c_str()) != 1) {
    return refuse("certificate");
  }
  if (ssl.SSL_CTX_use_PrivateKey_file(context, path.c_str(), kFilePem) != 1) {
    return refuse("private key of its certificate");
  }
  if (ssl.SSL_CTX_load_verify_locations(context, path.c_str(), nullptr) != 1) {
    return refuse("certificate of an authority");
  }
  return std::shared_ptr<const TlsKeys>(std::move(keys));
}

TlsKeys::~TlsKeys() {
  if (context_ != nullptr) Ssl().SSL_CTX_free(context_);
}

Result<std::unique_ptr<Channel>> TlsKeys::Wrap(std::unique_ptr<Channel> inside) const {
  void* session = Ssl().SSL_new(context_);
  if (session == nullptr) return Status(Code::kOutOfMemory, "no memory for a connection");
  if (role_ == Role::kWorker) {
    Ssl().SSL_set_accept_state(session);
  } else {
    Ssl().SSL_set_connect_state(session);
  }
  return std::unique_ptr<Channel>(new TlsChannel(std::move(inside), session));
}

Result<std::unique_ptr<Channel>> Connect(const Address& address, const TlsKeys* keys,
                                         int timeout_ms, const Wake* stop) {
  Result<std::unique_ptr<Channel>> plain = ConnectTcp(address, timeout_ms, stop);
  if (!plain.ok() || keys == nullptr) return plain;
  Result<std::unique_ptr<Channel>> wrapped = keys->Wrap(std::move(plain.value()));
  if (!wrapped.ok()) return wrapped;
  auto* channel = static_cast<TlsChannel*>(wrapped.value().get());
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    short wants = POLLIN;
    const Result<bool> shaken = channel->Shake(&wants);
    if (!shaken.ok()) return shaken.status();
    if (shaken.value()) return wrapped;
    REMOE_RETURN_IF_ERROR(AwaitChannel(*channel, wants, until, stop, "no answer to the handshake"));
  }
}

}  // namespace remoe

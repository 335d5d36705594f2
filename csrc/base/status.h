// Status and Result: how the core reports failure.
//
// Nothing in the core throws: a callback of the compute library must never unwind. A Status carries
// a code, so that callers can act, and one sentence for a person: what failed, where (path, offset,
// layer, expert), and the way out where there is one. Bindings turn it into a Python exception.
//
// Both are plain values that own their text; copies are independent. One thread at a time.
#ifndef REMOE_BASE_STATUS_H_
#define REMOE_BASE_STATUS_H_

#include <optional>
#include <string>
#include <utility>

namespace remoe {

enum class Code {
  kOk,
  kInvalidArgument,  // the caller asked for something that makes no sense
  kCorrupt,          // a file contradicts itself or its size
  kIo,               // the operating system refused or failed
  kNotSupported,     // understood, and not possible here
  kBudgetTooSmall,   // the memory budget is below the floor
  kOutOfMemory,
  kRefused,  // one end of a connection will not have the other: trying again is of no use
  kCancelled,
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return Status(); }
  // kIo with the text of `error_number` appended.
  static Status Io(std::string what, int error_number);

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A value, or the reason why there is none. REQUIRES: a Result made from a Status has !status.ok().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit by design

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  // REQUIRES: ok().
  T& value() { return *value_; }
  const T& value() const { return *value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace remoe

#define REMOE_RETURN_IF_ERROR(expression)          \
  do {                                             \
    ::remoe::Status remoe_status_ = (expression);  \
    if (!remoe_status_.ok()) return remoe_status_; \
  } while (false)

#endif  // REMOE_BASE_STATUS_H_

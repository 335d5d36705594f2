// Format: printf into a std::string, for messages and reports. Thread-safe.
#ifndef REMOE_BASE_FORMAT_H_
#define REMOE_BASE_FORMAT_H_

#include <string>

namespace remoe {

std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace remoe

#endif  // REMOE_BASE_FORMAT_H_

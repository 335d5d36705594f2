// Format: printf into a std::string, for messages and reports.
//
// The compiler checks the arguments against the format, as it does for printf. The result owns its
// text and has no limit of length. Numbers have a point in every language. Anything that a person reads
// is made here: errors name what failed, where, and the way out. Safe in any thread: it shares no state.
#ifndef REMOE_BASE_FORMAT_H_
#define REMOE_BASE_FORMAT_H_

#include <string>

namespace remoe {

std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace remoe

#endif  // REMOE_BASE_FORMAT_H_

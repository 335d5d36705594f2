#include "base/format.h"

#include <cstdarg>
#include <cstdio>

#include "base/c_locale.h"

namespace remoe {

std::string Format(const char* format, ...) {
  const CLocale numbers;
  va_list args, copy;
  va_start(args, format);
  va_copy(copy, args);
  const int size = std::vsnprintf(nullptr, 0, format, args);
  va_end(args);
  std::string text(size > 0 ? static_cast<size_t>(size) : 0, '\0');
  if (size > 0) std::vsnprintf(text.data(), text.size() + 1, format, copy);
  va_end(copy);
  return text;
}

}  // namespace remoe

#include "plugin/cache_amount.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/c_locale.h"
#include "base/format.h"

namespace remoe::plugin {

namespace {

std::string Bare(const std::string& text) {
  std::string bare;
  for (const char each : text) {
    if (each != ' ' && each != '\t') bare += each >= 'A' && each <= 'Z' ? each - 'A' + 'a' : each;
  }
  return bare;
}

// A number of digits and at most one point, and where it ends; negative for none.
double Number(const std::string& text, size_t* end) {
  size_t at = 0, digits = 0, points = 0;
  for (; at < text.size(); at++) {
    if (text[at] >= '0' && text[at] <= '9') {
      digits++;
    } else if (text[at] != '.' || ++points > 1) {
      break;
    }
  }
  *end = at;
  const CLocale numbers;
  return digits > 0 ? std::strtod(text.substr(0, at).c_str(), nullptr) : -1;
}

// KiB and K are powers of 1024, KB powers of 1000; 0 for what is no unit.
double Unit(const std::string& text) {
  if (text.empty() || text == "b") return 1;
  const size_t power = std::string("kmgt").find(text[0]);
  if (power == std::string::npos) return 0;
  const std::string rest = text.substr(1);
  if (rest != "" && rest != "ib" && rest != "b") return 0;
  return std::pow(rest == "b" ? 1000.0 : 1024.0, static_cast<double>(power + 1));
}

}  // namespace

Result<CacheAmount> CacheAmount::Parse(const std::string& text) {
  constexpr double kMostBytes = 1ull << 62;
  const std::string bare = Bare(text);
  CacheAmount amount;
  if (bare == "auto") return amount;
  size_t end = 0;
  const double number = Number(bare, &end);
  if (bare.substr(end) == "%") {
    if (number <= 0 || number > 100) {
      return Status(Code::kInvalidArgument,
                    Format("'%s' is not between 0%% and 100%%", text.c_str()));
    }
    amount.kind = Kind::kShare;
    amount.share = number / 100;
    return amount;
  }
  const double unit = Unit(bare.substr(end));
  if (number < 0 || unit == 0) {
    return Status(
        Code::kInvalidArgument,
        Format("'%s' is no amount of memory; write for example 1500MiB, 1.5G, 30%% or auto",
               text.c_str()));
  }
  amount.kind = Kind::kBytes;
  amount.n_bytes = static_cast<uint64_t>(std::min(number * unit, kMostBytes));
  return amount;
}

}  // namespace remoe::plugin

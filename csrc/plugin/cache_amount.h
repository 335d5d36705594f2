// CacheAmount: how large the user wants the process' expert cache: so many bytes, a share of the
// experts, or what memory leaves.
//
// Written as everywhere in remoe-edge: 1500MiB, 1.5G, 800MB; 30%; auto. remoe_edge/units.py reads the
// same.
//
// A plain value; any thread.
#ifndef REMOE_PLUGIN_CACHE_AMOUNT_H_
#define REMOE_PLUGIN_CACHE_AMOUNT_H_

#include <cstdint>
#include <string>

#include "base/status.h"

namespace remoe::plugin {

struct CacheAmount {
  enum class Kind { kAuto, kShare, kBytes } kind = Kind::kAuto;
  double share = 0;      // of kShare, in (0, 1]
  uint64_t n_bytes = 0;  // of kBytes

  static Result<CacheAmount> Parse(const std::string& text);
};

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_CACHE_AMOUNT_H_

// AheadPlan: which experts are worth reading before anybody asks for them, and how.
//
// Plain values; made by who looks ahead, carried out by the expert store.
#ifndef REMOE_PREFETCH_AHEAD_PLAN_H_
#define REMOE_PREFETCH_AHEAD_PLAN_H_

#include <cstdint>
#include <vector>

namespace remoe {

struct AheadRequest {
  int layer = 0;
  uint16_t expert = 0;
};

struct AheadPlan {
  // Of the layers to come, the layer that comes first in front, the likeliest first.
  std::vector<AheadRequest> wanted;
  // A prompt's batch needs most of what is wanted, and computes for long: reads flow on in the
  // background at the device's full depth, into slots of spent experts too. Otherwise one matrix at
  // a time is read, while no demand read is under way, into spare slots alone.
  bool stream = false;
};

}  // namespace remoe

#endif  // REMOE_PREFETCH_AHEAD_PLAN_H_

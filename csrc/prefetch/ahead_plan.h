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
  float certainty = 1;  // the probability that the layer's event asks for it
};

struct AheadPlan {
  // Read in this order.
  std::vector<AheadRequest> wanted;
  // A prompt's batch needs most of what is wanted, and computes for long: reads flow on in the
  // background, as many at a time as keep the device busy, into slots of spent experts too.
  // Otherwise one matrix at a time is read, while no demand read is under way, into spare slots
  // alone.
  bool stream = false;
};

}  // namespace remoe

#endif  // REMOE_PREFETCH_AHEAD_PLAN_H_

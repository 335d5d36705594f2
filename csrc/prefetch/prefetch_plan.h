// PrefetchPlan: which experts are worth reading before anybody asks for them, and how urgently.
//
// Made by who predicts, carried out by the expert store. One plan holds at a time: a new one
// replaces it, and what has begun of the old one and may still be asked for goes on.
//
// Plain values, copied between threads as such.
#ifndef REMOE_PREFETCH_PREFETCH_PLAN_H_
#define REMOE_PREFETCH_PREFETCH_PLAN_H_

#include <cstdint>
#include <vector>

namespace remoe {

struct PrefetchRequest {
  int layer = 0;
  uint16_t expert = 0;
  float certainty = 1;  // the probability that the layer's event asks for it
};

// What a plan is for decides which slots it may take, how its reads share the device with demand
// reads, and what becomes of experts that no event asked for:
//
//              slots                       reads                              unasked
//     kStart   free, none of the reserved  several at a time                  become resident
//     kToken   free and reserved           one matrix, while the device idles given up
//     kPrompt  those and expendable ones   several at a time                  given up
//
// kStart is for the time before anything runs: the next event ends it.
enum class PrefetchPriority : uint8_t { kStart, kToken, kPrompt };

struct PrefetchPlan {
  PrefetchPriority priority = PrefetchPriority::kToken;
  std::vector<PrefetchRequest> wanted;  // read in this order
};

}  // namespace remoe

#endif  // REMOE_PREFETCH_PREFETCH_PLAN_H_

// SlotLoad: what is being read into a slot, and for whom. One state machine for every read:
//
//                    Plan            event asks
//     kIdle ──────► kPrefetch ─────────────────► kDemand ──► kIdle   its event has ended
//       │             │    ▲                        ▲
//       │     given up│    │planned again           │event asks
//       │             ▼    │                        │
//       │           kCancelled ─────────────────────┘
//       │             │ nothing in flight: the slot is free
//       │             ▼
//       │           kIdle
//       └──────────────── event asks ─────────────► kDemand
//
// Reads set bits: a matrix is waiting, in flight, or there. A plain value, kept by the StorageSource
// under its mutex; threads see copies.
#ifndef REMOE_RUNTIME_SLOT_LOAD_H_
#define REMOE_RUNTIME_SLOT_LOAD_H_

#include <cstdint>

namespace remoe {

struct SlotLoad {
  enum class State : uint8_t { kIdle, kPrefetch, kCancelled, kDemand };
  State state = State::kIdle;
  bool failed = false;     // prefetch: read no further; demand: the event fails
  bool announced = false;  // demand: all but down was announced
  int layer = 0;
  uint16_t expert = 0;
  uint32_t waiting = 0;  // matrices that no read was submitted for, by bit
  uint32_t in_flight = 0;
  uint64_t bytes = 0;  // delivered

  bool complete() const { return waiting == 0 && in_flight == 0; }
  bool untouched() const { return bytes == 0 && in_flight == 0; }
  bool lacks_only(uint32_t matrix) const { return (waiting | in_flight) == matrix; }
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_SLOT_LOAD_H_

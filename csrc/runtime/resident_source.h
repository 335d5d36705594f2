// ResidentSource: experts that have their slot, filled, from earlier events.
//
// The simplest source: a hit is there at once, so all of them are posted when the event begins. It
// owns no memory; the slots are the storage source's.
//
// One thread, that which runs events.
#ifndef REMOE_RUNTIME_RESIDENT_SOURCE_H_
#define REMOE_RUNTIME_RESIDENT_SOURCE_H_

#include <vector>

#include "runtime/expert_source.h"

namespace remoe {

class ResidentSource : public ExpertSource {
 public:
  const char* name() const override { return "resident"; }
  void Begin(const Demand& demand, std::vector<bool>* taken) override;
  void End() override {}

 private:
  std::vector<uint16_t> hits_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_RESIDENT_SOURCE_H_

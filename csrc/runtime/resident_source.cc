#include "runtime/resident_source.h"

namespace remoe {

void ResidentSource::Begin(const Demand& demand, std::vector<bool>* taken) {
  hits_.clear();
  for (size_t i = 0; i < demand.experts->size(); i++) {
    const Placement& placement = (*demand.experts)[i];
    if (!placement.hit || (*taken)[i]) continue;
    (*taken)[i] = true;
    hits_.push_back(placement.expert);
  }
  demand.arrivals->PostWeights(demand.ticket, hits_);
}

}  // namespace remoe

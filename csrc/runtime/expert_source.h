// ExpertSource: where an expert of a step comes from. A slot that holds it already, and storage, are
// sources; another host, or memory on a GPU, is one more file that implements this.
//
// A step offers its experts to one source after the other. Each takes what it will answer for, and
// posts to the step's arrivals, at once or later, from any thread, one final item for each expert
// that it took. Two kinds of sources answer differently:
//
//     weights  asked once the cache has placed the experts: fills their slots
//     rows     asked before that (their slots are kNoSlot, and none is taken for them): computes the
//              experts' rows elsewhere. What fails there, or is late, the step takes from weights.
//              A placement says whether the expert is resident or prefetched here already.
//
// Begin() and End() come from the one thread that runs steps.
#ifndef REMOE_RUNTIME_EXPERT_SOURCE_H_
#define REMOE_RUNTIME_EXPERT_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "cache/cache.h"
#include "runtime/arrivals.h"

namespace remoe {

// What a step would compute of its experts, for who can do it elsewhere. Valid during Begin() only.
class ExpertRows {
 public:
  virtual ~ExpertRows() = default;
  virtual int n_rows(uint16_t expert) const = 0;  // tokens that take it
  virtual int64_t n_in() const = 0;               // values of a row
  virtual int64_t n_out() const = 0;              // values of what a row gives
  // Writes [n_rows][n_in], in the order of the tokens.
  virtual void Gather(uint16_t expert, float* rows) const = 0;
  // Appends how the rows are computed, in bytes that the device reads; nothing where only the graph
  // itself can say that.
  virtual void Describe(std::string* recipe) const = 0;
};

struct Demand {
  int layer = 0;
  int n_tokens = 1;
  const std::vector<Placement>* experts = nullptr;
  const ExpertRows* rows = nullptr;  // null for weights
  Arrivals* arrivals = nullptr;
  Arrivals::Ticket ticket = 0;
};

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  virtual const char* name() const = 0;
  // Sets (*taken)[i] for those of demand.experts that it will answer for. REQUIRES: as many as
  // experts; none that is set already is touched.
  virtual void Begin(const Demand& demand, std::vector<bool>* taken) = 0;
  // The step is over, well or not. RETURNS when nothing writes to the step's slots any more.
  virtual void End() = 0;
  // Of a source of weights, of the ended event: its first failure; the experts that it could not fill.
  const Status& failure() const { return failure_; }
  const std::vector<uint16_t>& failed() const { return failed_; }

 protected:
  Status failure_;
  std::vector<uint16_t> failed_;
};

}  // namespace remoe

#endif  // REMOE_RUNTIME_EXPERT_SOURCE_H_

#include "device/recorder.h"

#include "device/stopwatch.h"

namespace remoe {

Status Recorder::Start(const std::string& path, const TraceHeader& header) {
  if (trace_ != nullptr) return Status(Code::kInvalidArgument, "a trace is being recorded already");
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(path, header);
  if (!writer.ok()) return writer.status();
  trace_ = std::move(writer.value());
  return Status::Ok();
}

Status Recorder::Stop() {
  if (trace_ == nullptr) return Status::Ok();
  // A trace without a step would take the place of an older one, and is worth less: it is dropped.
  const Status status = trace_->n_events() > 0 ? trace_->Finish() : trace_->failure();
  trace_.reset();
  return status;
}

void Recorder::Record(const Event& event) {
  if (trace_ == nullptr) return;
  const Stopwatch stopwatch(&ns);
  TraceEvent record;
  record.layer = event.layer;
  record.step = event.step;
  record.decode = event.phase == Phase::kDecode;
  record.n_tokens = event.n_tokens;
  record.experts = event.experts;
  record.n = event.n;
  record.ids = event.ids;
  record.probs = event.probs;
  record.n_prob_tokens = event.n_prob_tokens;
  (void)trace_->Append(record);
}

void Recorder::DropStep() {
  if (trace_ != nullptr) trace_->DropStep();
}

}  // namespace remoe

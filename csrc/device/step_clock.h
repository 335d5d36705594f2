// StepClock: tells, from the layers as they come, where one step ends and the next begins.
//
// llama.cpp does not say so; layers come in order within a step, so one that does not follow starts
// the next. An expert FFN that other operations cut in pieces comes more than once, each time with
// matrices that were not used before. What a step is for, whoever asks llama.cpp for it can say
// (Declare()); unsaid, several tokens are a prompt and one is decoded. A plain value; the thread that
// runs steps has it, and Declare() is called between steps.
#ifndef REMOE_DEVICE_STEP_CLOCK_H_
#define REMOE_DEVICE_STEP_CLOCK_H_

#include <cstdint>

#include "cache/policy.h"

namespace remoe {

// What the steps that follow are for: a prompt, a token of each of several conversations, or one
// conversation's next token and guesses of those after it.
enum class StepKind : uint8_t { kByTokens, kPrompt, kDecode, kDraft };

class StepClock {
 public:
  void Declare(StepKind kind, int conversation) {
    kind_ = kind;
    conversation_ = conversation;
  }
  // Whether that matrix of that layer belongs to the step under way.
  bool InStep(int layer, int matrix) const {
    return last_layer_ >= 0 && (layer > last_layer_ || AnotherPiece(layer, matrix));
  }
  // Whether it is a later piece of the FFN that was run last.
  bool AnotherPiece(int layer, int matrix) const {
    return layer == last_layer_ && (used_matrices_ & 1u << matrix) == 0;
  }
  // What a step is that has so many tokens in that layer, before the layer comes.
  Phase PhaseAt(int layer, int matrix, int n_tokens) const {
    return InStep(layer, matrix) ? phase_ : PhaseOf(n_tokens);
  }
  // The layer comes: completes the event with its place in the run. RETURNS: whether a step begins.
  bool Advance(int matrix, Event* event) {
    bool begins = false;
    event->continued = AnotherPiece(event->layer, matrix);
    if (!event->continued) {
      if (!InStep(event->layer, matrix)) {
        begins = true;
        step_++;
        // A prompt's last layer is run for its last token alone, and is prefill all the same.
        phase_ = PhaseOf(event->n_tokens);
      }
      last_layer_ = event->layer;
      used_matrices_ = 0;
    }
    event->step = step_;
    event->phase = phase_;
    event->in_sequence = kind_ != StepKind::kDecode;
    event->conversation = conversation_;
    return begins;
  }
  void MarkUsed(int matrix) { used_matrices_ |= 1u << matrix; }
  bool UsedAll(int n_matrices) const { return used_matrices_ == (1u << n_matrices) - 1; }
  // The step goes no further.
  void Abandon() {
    last_layer_ = -1;
    used_matrices_ = 0;
  }

 private:
  Phase PhaseOf(int n_tokens) const {
    if (kind_ == StepKind::kByTokens) return n_tokens > 1 ? Phase::kPrefill : Phase::kDecode;
    return kind_ == StepKind::kPrompt ? Phase::kPrefill : Phase::kDecode;
  }

  StepKind kind_ = StepKind::kByTokens;
  int conversation_ = kNoConversation;
  int64_t step_ = -1;
  Phase phase_ = Phase::kPrefill;
  int last_layer_ = -1;
  unsigned used_matrices_ = 0;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_STEP_CLOCK_H_

// What a worker says: frames with a text, and frames that answer another.
//
// Both are made for the side that sends them; a reply carries the number, the layer and the expert
// of what it answers, by which an engine finds what it had asked.
//
// Plain functions of their arguments. Any thread.
#ifndef REMOE_REMOTE_WORKER_FRAMES_H_
#define REMOE_REMOTE_WORKER_FRAMES_H_

#include <string>

#include "wire/frame.h"

namespace remoe {

inline Frame Said(FrameKind kind, const std::string& text) {
  Frame frame;
  frame.kind = kind;
  frame.payload.assign(text.begin(), text.end());
  return frame;
}

inline Frame Reply(const Frame& ask, FrameKind kind, const std::string& text = "") {
  Frame frame = Said(kind, text);
  frame.request = ask.request;
  frame.layer = ask.layer;
  frame.expert = ask.expert;
  return frame;
}

}  // namespace remoe

#endif  // REMOE_REMOTE_WORKER_FRAMES_H_

// LastWords: one line on stderr where llama.cpp ends the process, with its assertion and the models
// that were open.
//
// Where a check of ours could have known, a file is refused before llama.cpp sees it. What llama.cpp
// finds wrong by itself it ends with abort(), or throws where nobody can catch it; either way the
// process is over, and all that can be done is to say so.
//
// A model's name is kept as long as its LastWords lives. While there is one, ggml's abort callback and
// C++'s terminate handler are ours; afterwards they are whose they were. Thread-safe.
#ifndef REMOE_DEVICE_LAST_WORDS_H_
#define REMOE_DEVICE_LAST_WORDS_H_

#include <string>

namespace remoe {

class LastWords {
 public:
  explicit LastWords(const std::string& path);
  ~LastWords();
  LastWords(const LastWords&) = delete;
  LastWords& operator=(const LastWords&) = delete;

 private:
  std::string path_;
};

}  // namespace remoe

#endif  // REMOE_DEVICE_LAST_WORDS_H_

#include "device/last_words.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string_view>
#include <vector>

#include "ggml.h"

namespace remoe {
namespace {

struct Open {
  std::mutex mutex;
  std::vector<std::string> paths;
  int error_output =
      -1;  // stderr as it was: llama-cpp-python closes it while it loads a whole file
  ggml_abort_callback_t before = nullptr;
  std::terminate_handler terminate_before = nullptr;
};

// Never freed: the process may end while statics are destroyed.
Open& TheOpen() {
  static Open* const open = new Open;
  return *open;
}

// The models by name, without waiting for whoever holds the lock: the process is about to end.
std::string Models() {
  Open& open = TheOpen();
  const std::unique_lock<std::mutex> lock(open.mutex, std::try_to_lock);
  if (!lock || open.paths.empty()) return "models";
  std::string text = open.paths.size() > 1 ? "one of " : "";
  for (size_t i = 0; i < open.paths.size(); i++) text += (i > 0 ? ", " : "") + open.paths[i];
  return text;
}

// Stderr, or what it was before something put the null device in its place.
int ErrorOutput() {
  struct stat status;
  const bool is_null = fstat(STDERR_FILENO, &status) != 0 ||
                       (S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3));
  const int kept = TheOpen().error_output;
  return is_null && kept >= 0 ? kept : STDERR_FILENO;
}

void Say(std::string line) {
  std::replace(line.begin(), line.end(), '\n', ' ');
  line += '\n';
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t n = write(ErrorOutput(), line.data() + done, line.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

void OnAbort(const char* message) {
  std::string_view text = message == nullptr ? "" : message;
  const size_t place = text.find(':');  // "FILE:LINE: what it asserts", of which no folder matters
  const size_t folder = text.substr(0, place).rfind('/');
  if (folder != std::string_view::npos) text.remove_prefix(folder + 1);
  Say("Error: llama.cpp aborted, with " + Models() + " open: " + std::string(text) +
      " (a check of llama.cpp's own)");
  if (TheOpen().before != nullptr) TheOpen().before(message);
}

[[noreturn]] void OnTerminate() {
  std::string what = "an exception";
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
  }
  Say("Error: native code threw where nothing catches, with " + Models() + " open: " + what);
  std::abort();
}

}  // namespace

LastWords::LastWords(const std::string& path) : path_(path) {
  Open& open = TheOpen();
  const std::lock_guard<std::mutex> lock(open.mutex);
  if (open.paths.empty()) {
    open.before = ggml_set_abort_callback(OnAbort);
    open.terminate_before = std::set_terminate(OnTerminate);
  }
  open.paths.push_back(path);
  const int before = open.error_output;
  open.error_output = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (before >= 0) close(before);
}

LastWords::~LastWords() {
  Open& open = TheOpen();
  const std::lock_guard<std::mutex> lock(open.mutex);
  open.paths.erase(std::find(open.paths.begin(), open.paths.end(), path_));
  if (!open.paths.empty()) return;
  // Somebody may have set one of their own since: that one stays.
  const ggml_abort_callback_t theirs = ggml_set_abort_callback(open.before);
  if (theirs != OnAbort) ggml_set_abort_callback(theirs);
  if (std::get_terminate() == OnTerminate) std::set_terminate(open.terminate_before);
  if (open.error_output >= 0) close(open.error_output);
  open.error_output = -1;
}

}  // namespace remoe

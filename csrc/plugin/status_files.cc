#include "plugin/status_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <new>
#include <random>
#include <thread>

#include "base/format.h"
#include "base/thread.h"
#include "plugin/log.h"

namespace remoe::plugin {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBlockBytes = 4096;
constexpr size_t kChecksumBytes = 9;
constexpr size_t kMostPathBytes = 300;
constexpr auto kInterval = std::chrono::milliseconds(200);
constexpr size_t kRecentLooks = 10;  // that rates are taken from

uint32_t Crc32(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char each : bytes) {
    crc ^= static_cast<uint8_t>(each);
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

// ASCII; whatever else a path may hold is shown by its bytes.
std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char each : text) {
    const auto byte = static_cast<unsigned char>(each);
    if (byte == '"' || byte == '\\') quoted += '\\';
    quoted += byte >= 0x20 && byte < 0x7f ? std::string(1, each) : Format("\\u%04x", byte);
  }
  return quoted + "\"";
}

bool IsOwn(const std::string& folder) {
  struct stat found;
  return lstat(folder.c_str(), &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == getuid() &&
         (found.st_mode & 022) == 0;
}

// The first of this user's folders that is there or can be made; empty for none.
std::string FolderFor(const std::string& where, const std::string& runtime) {
  std::vector<std::string> choices;
  if (where != "on") {
    choices.push_back(where);
  } else {
    const unsigned uid = getuid();
    if (!runtime.empty() && runtime[0] == '/') choices.push_back(runtime + "/remoe-edge");
    const std::string session = Format("/run/user/%u", uid);
    if (IsOwn(session)) choices.push_back(session + "/remoe-edge");
    choices.push_back(Format("/tmp/remoe-edge-%u", uid));
  }
  for (const std::string& folder : choices) {
    mkdir(folder.c_str(), 0700);
    if (IsOwn(folder) && access(folder.c_str(), W_OK | X_OK) == 0) return folder;
  }
  return "";
}

double UnixSeconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

struct Look {
  Clock::time_point at;
  StoreCounts counts;
  uint64_t prompt_tokens = 0, decoded_tokens = 0;
};

// A cache that was made anew counts from 0: what went before is added.
class RisingCounts {
 public:
  StoreCounts Add(const StoreCounts& now) {
    if (now.events < last_.events) {
      before_.hits += last_.hits;
      before_.misses += last_.misses;
      before_.bytes_read += last_.bytes_read;
      before_.stall_ns += last_.stall_ns;
      before_.events += last_.events;
    }
    last_ = now;
    StoreCounts sum = before_;
    sum.hits += now.hits;
    sum.misses += now.misses;
    sum.bytes_read += now.bytes_read;
    sum.stall_ns += now.stall_ns;
    sum.events += now.events;
    return sum;
  }

 private:
  StoreCounts before_, last_;
};

std::string Rate(double value, double per) {
  return per > 0 ? Format("%.4f", value / per) : "null";
}

}  // namespace

struct StatusFiles::Shown {
  StreamedModel* model;
  int file = -1;
  std::string path;
  double started_s = UnixSeconds();
  RisingCounts rising;
  std::deque<Look> looks;
  double decode_s = 0;
  std::string state = "idle", written;

  ~Shown() {
    if (file < 0) return;
    unlink(path.c_str());
    close(file);
  }

  // RETURNS: what stands against it, or empty.
  std::string Open(const std::string& folder) {
    if (folder.empty()) return "no folder of this user's own can be written";
    std::random_device random;
    const std::string name = Format("%d-%08x", getpid(), random());
    const std::string fresh = folder + "/." + name;
    path = folder + "/" + name + ".status";
    file = open(fresh.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) return Format("%s: %s", fresh.c_str(), std::strerror(errno));
    // Locked before it has its name: whoever looks never takes a new file for a stale one.
    flock(file, LOCK_EX | LOCK_NB);
    LookAndWrite();
    rename(fresh.c_str(), path.c_str());
    return "";
  }

  void LookAndWrite() {
    Look look;
    look.at = Clock::now();
    uint64_t budget_bytes = 0;
    int slots = 0;
    std::string policy;
    {
      // The cache may be made anew at any time between two steps.
      const std::lock_guard<std::mutex> lock(model->step_mutex());
      if (model->store() != nullptr) {
        look.counts = rising.Add(model->store()->counts());
        budget_bytes = model->store()->budget_bytes();
        slots = model->store()->cache().total_slots();
        policy = model->store()->policy_name();
      }
    }
    look.prompt_tokens = model->prompt_tokens;
    look.decoded_tokens = model->decoded_tokens;
    const Look last = looks.empty() ? look : looks.back();
    const double passed = std::chrono::duration<double>(look.at - last.at).count();
    state = "idle";
    if (look.prompt_tokens > last.prompt_tokens) state = "prefill";
    if (look.decoded_tokens > last.decoded_tokens) {
      state = "decode";
      decode_s += passed;
    }
    // Rates are of times in which something ran.
    if (state == "idle" && looks.size() > 1) looks.clear();
    looks.push_back(look);
    if (looks.size() > kRecentLooks) looks.pop_front();
    Write(look, budget_bytes, slots, policy);
  }

  void Write(const Look& look, uint64_t budget_bytes, int slots, const std::string& policy) {
    const auto number = [](uint64_t value) { return static_cast<unsigned long long>(value); };
    const Look& first = looks.front();
    const double seconds = std::chrono::duration<double>(look.at - first.at).count();
    const uint64_t hits = look.counts.hits - first.counts.hits;
    const uint64_t misses = look.counts.misses - first.counts.misses;
    const std::string& full = model->file().paths()[0];
    const std::string shown =
        full.size() > kMostPathBytes ? full.substr(full.size() - kMostPathBytes) : full;
    std::string text = Format(
        "{\"pid\": %d, \"version\": %s, \"started_unix_s\": %.3f, \"state\": \"%s\", \"plugin\": "
        "true, "
        "\"streamed\": true, \"budget_bytes\": %llu, \"slots\": %d, \"policy\": %s, "
        "\"threads\": null, \"n_ctx\": null, \"model\": %s, ",
        getpid(), Quoted(REMOE_VERSION).c_str(), started_s, state.c_str(), number(budget_bytes),
        slots, Quoted(policy).c_str(), Quoted(shown).c_str());
    text += Format(
        "\"totals\": {\"answers\": 0, \"n_prompt\": %llu, \"n_generated\": %llu, \"hits\": %llu, "
        "\"misses\": %llu, \"bytes_read\": %llu, \"stall_ms\": %.3f, \"decode_ms\": %.3f}, ",
        number(look.prompt_tokens), number(look.decoded_tokens), number(look.counts.hits),
        number(look.counts.misses), number(look.counts.bytes_read), look.counts.stall_ns / 1e6,
        decode_s * 1000);
    text += Format(
        "\"recent\": {\"tokens_per_s\": %s, \"hit_rate\": %s, \"read_mib_per_s\": %s, "
        "\"stall_share\": %s}",
        Rate(static_cast<double>(look.decoded_tokens - first.decoded_tokens), seconds).c_str(),
        Rate(static_cast<double>(hits), static_cast<double>(hits + misses)).c_str(),
        Rate((look.counts.bytes_read - first.counts.bytes_read) / 1048576.0, seconds).c_str(),
        Rate((look.counts.stall_ns - first.counts.stall_ns) / 1e9, seconds).c_str());
    if (text == written) return;
    written = text;
    text += Format(", \"updated_unix_s\": %.3f}", UnixSeconds());
    text.resize(kBlockBytes - kChecksumBytes, ' ');
    const std::string block = Format("%08x ", Crc32(text)) + text;
    // A pwrite, no mapping: a file that someone truncates is then an error and no SIGBUS.
    (void)!pwrite(file, block.data(), block.size(), 0);
  }
};

StatusFiles::StatusFiles(const std::string& where, const std::string& runtime_folder)
    : where_(where), runtime_folder_(runtime_folder) {}

StatusFiles::~StatusFiles() = default;

void StatusFiles::Join(StreamedModel* model) {
  if (where_ == "off") return;
  auto shown = std::make_unique<Shown>();
  shown->model = model;
  const std::string why_not = shown->Open(FolderFor(where_, runtime_folder_));
  if (!why_not.empty()) {
    LogInfo("`remoe-edge top` will not show this program: " + why_not);
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  // A forked child: the files so far are its parent's, and the thread that writes them.
  if (!birthplace_.is_here()) {
    for (auto& of_parent : shown_) (void)of_parent.release();
    shown_.clear();
    looking_ = false;
    birthplace_ = Birthplace();
  }
  if (!looking_) {
    std::thread looking;
    const Status started = StartThread("looks", [this] { LookOn(); }, &looking);
    if (!started.ok()) {
      LogInfo("`remoe-edge top` will not show this program: " + started.message());
      return;
    }
    looking.detach();
    looking_ = true;
  }
  shown_.push_back(std::move(shown));
}

void StatusFiles::Leave(const StreamedModel* model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto each = shown_.begin(); each != shown_.end(); ++each) {
    if ((*each)->model != model) continue;
    shown_.erase(each);
    return;
  }
}

void StatusFiles::LookOn() {
  while (true) {
    std::this_thread::sleep_for(kInterval);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& shown : shown_) {
      try {
        shown->LookAndWrite();
      } catch (const std::bad_alloc&) {
        // The next look may have memory again.
      }
    }
  }
}

}  // namespace remoe::plugin

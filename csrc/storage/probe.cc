#include "storage/probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "base/format.h"
#include "base/rounding.h"
#include "storage/open_file.h"
#include "storage/reader.h"

namespace remoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMinFileBytes = 64 << 10;
constexpr uint64_t kMaxInFlightBytes = 32 << 20;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// How far two block sizes lie apart, in powers of two.
double Distance(uint64_t a, uint64_t b) {
  return std::abs(std::log2(static_cast<double>(a) / static_cast<double>(b)));
}

// Places for blocks of one size: page-aligned, drawn evenly from all that fit into the ranges.
class Places {
 public:
  Places(const std::vector<ProbeRange>& ranges, uint64_t block_bytes) {
    for (const ProbeRange& range : ranges) {
      const uint64_t begin = RoundUp(range.offset, kPage);
      const uint64_t end = range.offset + range.n_bytes;
      if (end < begin || end - begin < block_bytes) continue;
      const uint64_t n_places = (end - begin - block_bytes) / kPage + 1;
      spans_.push_back({begin, n_places});
      n_places_ += n_places;
    }
  }

  bool empty() const { return n_places_ == 0; }

  // REQUIRES: !empty().
  uint64_t first() const { return spans_.front().begin; }

  uint64_t Draw() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    uint64_t place = state_ % n_places_;
    for (const Span& span : spans_) {
      if (place < span.n_places) return span.begin + place * kPage;
      place -= span.n_places;
    }
    return spans_.back().begin;  // not reached: the spans hold all places
  }

 private:
  struct Span {
    uint64_t begin, n_places;
  };
  std::vector<Span> spans_;
  uint64_t n_places_ = 0;
  uint64_t state_ = 0x9E3779B97F4A7C15u;
};

// Keeps `depth` reads in flight until the time is up.
class Load {
 public:
  Load(Reader& reader, Places places, uint8_t* buffer, ProbePoint point)
      : reader_(reader), places_(std::move(places)), buffer_(buffer), point_(point) {}

  Result<ProbePoint> Run(double seconds) {
    limit_ = seconds;
    start_ = Clock::now();
    std::vector<Read> first;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (int i = 0; i < point_.depth; ++i) first.push_back(NextLocked(static_cast<uint64_t>(i)));
    }
    const ReadDone done = [this](const Read& read, const Status& status) { Arrived(read, status); };
    reader_.Submit(first.data(), static_cast<int>(first.size()), done);
    reader_.Drain();
    if (!failure_.ok()) return failure_;
    return point_;
  }

 private:
  Read NextLocked(uint64_t lane) {
    Read read;
    read.offset = places_.Draw();
    read.n_bytes = point_.block_bytes;
    read.dest = buffer_ + lane * point_.block_bytes;
    read.tag = lane;
    return read;
  }

  void Arrived(const Read& read, const Status& status) {
    Read next;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!status.ok()) {
        failure_ = status;
        return;
      }
      ++point_.n_reads;
      point_.seconds = Since(start_);
      if (point_.seconds >= limit_ || !failure_.ok()) return;
      next = NextLocked(read.tag);
    }
    reader_.Submit(&next, 1, [this](const Read& r, const Status& s) { Arrived(r, s); });
  }

  Reader& reader_;
  Clock::time_point start_;
  double limit_ = 0;
  std::mutex mutex_;
  Places places_;  // guarded by mutex_, as all below
  uint8_t* const buffer_;
  ProbePoint point_;
  Status failure_;
};

struct Free {
  void operator()(uint8_t* bytes) const { std::free(bytes); }
};

Result<std::vector<ProbePoint>> PlanPoints(const std::string& path, const ProbeOptions& options,
                                           const std::vector<ProbeRange>& ranges) {
  std::vector<ProbePoint> points;
  for (const uint64_t block_bytes : options.block_bytes) {
    if (block_bytes == 0 || block_bytes % kPage != 0) {
      return Status(Code::kInvalidArgument,
                    Format("probe: a block of %llu bytes is no multiple of %llu",
                           static_cast<unsigned long long>(block_bytes),
                           static_cast<unsigned long long>(kPage)));
    }
    if (Places(ranges, block_bytes).empty()) continue;
    for (const int depth : options.depths) {
      if (depth < 1) {
        return Status(Code::kInvalidArgument, Format("probe: depth %d is below 1", depth));
      }
      if (depth > 1 && block_bytes * static_cast<uint64_t>(depth) > kMaxInFlightBytes) continue;
      ProbePoint point;
      point.block_bytes = block_bytes;
      point.depth = depth;
      points.push_back(point);
    }
  }
  if (points.empty()) {
    return Status(Code::kInvalidArgument, "probe: no block fits into the ranges of " + path);
  }
  // The block size that the pick is for comes first, whatever else time allows; then what is quick.
  uint64_t nearest = points.front().block_bytes;
  for (const ProbePoint& point : points) {
    if (Distance(point.block_bytes, options.wanted_bytes) <
        Distance(nearest, options.wanted_bytes)) {
      nearest = point.block_bytes;
    }
  }
  const auto rank = [nearest](const ProbePoint& point) {
    return std::make_tuple(point.block_bytes != nearest,
                           point.block_bytes * static_cast<uint64_t>(point.depth), point.depth);
  };
  std::sort(points.begin(), points.end(),
            [&rank](const ProbePoint& a, const ProbePoint& b) { return rank(a) < rank(b); });
  return points;
}

}  // namespace

ProbePoint PickDepth(const std::vector<ProbePoint>& points, uint64_t wanted_bytes) {
  const auto distance = [wanted_bytes](const ProbePoint& point) {
    return std::abs(
        std::log2(static_cast<double>(point.block_bytes) / static_cast<double>(wanted_bytes)));
  };
  // A queue of one or two measures well on an idle machine and runs dry in an engine, where whoever
  // refills it waits for a core that computes.
  constexpr int kShallowest = 4;
  double nearest = distance(points.front());
  for (const ProbePoint& point : points) nearest = std::min(nearest, distance(point));
  double best = 0;
  for (const ProbePoint& point : points) {
    if (distance(point) == nearest) best = std::max(best, point.bytes_per_s());
  }
  const ProbePoint* pick = nullptr;
  for (const ProbePoint& point : points) {
    if (distance(point) != nearest || point.bytes_per_s() < 0.95 * best) continue;
    if (pick == nullptr || point.depth < pick->depth) pick = &point;
  }
  for (const ProbePoint& point : points) {
    const bool deeper = point.depth >= kShallowest && point.depth > pick->depth;
    if (pick->depth < kShallowest && distance(point) == nearest && deeper) {
      pick = &point;
      break;
    }
  }
  return *pick;
}

ProbeOptions QuickProbe(std::vector<ProbeRange> ranges, uint64_t wanted_bytes) {
  ProbeOptions options;
  options.ranges = std::move(ranges);
  options.block_bytes = {std::max(RoundDown(wanted_bytes, kPage), kPage)};
  options.depths = {1, 2, 4, 8, 16};
  options.seconds = 0.15;
  options.wanted_bytes = options.block_bytes.front();
  return options;
}

Result<ProbeResult> Probe(const std::string& path, const ProbeOptions& options) {
  const Clock::time_point start = Clock::now();
  uint64_t file_bytes = 0;
  {
    auto file = OpenFile::Open(path, {false, 0, false});
    if (!file.ok()) return file.status();
    file_bytes = file.value().n_bytes();
  }
  if (file_bytes < kMinFileBytes) {
    return Status(Code::kInvalidArgument,
                  Format("%s is too short to measure: %llu bytes, at least %llu are needed",
                         path.c_str(), static_cast<unsigned long long>(file_bytes),
                         static_cast<unsigned long long>(kMinFileBytes)));
  }
  if (!(options.seconds > 0) || options.wanted_bytes == 0) {
    return Status(Code::kInvalidArgument,
                  Format("probe: %g seconds, blocks of %llu bytes wanted", options.seconds,
                         static_cast<unsigned long long>(options.wanted_bytes)));
  }
  std::vector<ProbeRange> ranges = options.ranges;
  if (ranges.empty()) ranges.push_back({0, file_bytes});
  for (const ProbeRange& range : ranges) {
    if (range.offset > file_bytes || range.n_bytes > file_bytes - range.offset) {
      return Status(Code::kInvalidArgument,
                    Format("probe: range %llu + %llu lies beyond the %llu bytes of %s",
                           static_cast<unsigned long long>(range.offset),
                           static_cast<unsigned long long>(range.n_bytes),
                           static_cast<unsigned long long>(file_bytes), path.c_str()));
    }
  }
  auto planned = PlanPoints(path, options, ranges);
  if (!planned.ok()) return planned.status();

  uint64_t buffer_bytes = 0;
  for (const ProbePoint& point : planned.value()) {
    buffer_bytes = std::max(buffer_bytes, point.block_bytes * static_cast<uint64_t>(point.depth));
  }
  const std::unique_ptr<uint8_t, Free> buffer(
      static_cast<uint8_t*>(std::aligned_alloc(kPage, buffer_bytes)));
  if (!buffer) return Status(Code::kOutOfMemory, "probe: no memory for the buffers");

  ProbeResult result;
  double best = 0;
  size_t n_left = planned.value().size();
  for (const ProbePoint& point : planned.value()) {
    const double share = (options.seconds - Since(start)) / static_cast<double>(n_left--);
    // The reads in flight when the share ends must still arrive.
    const double drain =
        best > 0
            ? static_cast<double>(point.block_bytes * static_cast<uint64_t>(point.depth)) / best
            : 0;
    if (!result.points.empty() && (share <= 0 || drain > 2 * share)) continue;
    ReaderOptions reader_options;
    reader_options.backend = options.backend;
    reader_options.direct = options.direct;
    reader_options.depth = point.depth;
    reader_options.background_depth = 1;
    reader_options.piece_bytes = point.block_bytes;
    const Places places(ranges, point.block_bytes);
    reader_options.proof_offset = places.first();
    reader_options.faults = options.faults;
    auto reader = OpenReader({path}, reader_options);
    if (!reader.ok()) return reader.status();
    Load load(*reader.value(), places, buffer.get(), point);
    auto measured = load.Run(std::max(share - drain, 0.0));
    if (!measured.ok()) return measured.status();
    best = std::max(best, measured.value().bytes_per_s());
    result.points.push_back(measured.value());
    result.backend = reader.value()->backend();
    result.direct = reader.value()->direct();
    result.notes = reader.value()->notes();
  }
  std::sort(
      result.points.begin(), result.points.end(), [](const ProbePoint& a, const ProbePoint& b) {
        return std::make_tuple(a.block_bytes, a.depth) < std::make_tuple(b.block_bytes, b.depth);
      });
  result.pick = PickDepth(result.points, options.wanted_bytes);
  return result;
}

}  // namespace remoe

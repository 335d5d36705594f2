#include "storage/read_queue.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/check.h"

namespace remoe {
namespace {

// Operations that have failed before they started: enough to be queued, and no file is needed.
class Script {
 public:
  std::vector<std::unique_ptr<Operation>> Reads(const std::vector<uint64_t>& tags,
                                                bool background) {
    auto batch = std::make_shared<Batch>();
    batch->done = [this](const Read& read, const Status& status) {
      log_ += std::to_string(read.tag) + (status.code() == Code::kCancelled ? "x" : "") + " ";
    };
    std::vector<std::unique_ptr<Operation>> operations;
    for (const uint64_t tag : tags) {
      Batch::Item item;
      item.read.tag = tag;
      item.read.background = background;
      item.n_pending = 1;
      batch->items.push_back(item);
    }
    for (size_t i = 0; i < tags.size(); ++i) {
      operations.push_back(
          std::make_unique<Operation>(batch, static_cast<int>(i), Status(Code::kIo, "scripted")));
    }
    return operations;
  }
  // What was told so far: tags in order, an x behind the cancelled.
  std::string Told() { return std::exchange(log_, ""); }

 private:
  std::string log_;
};

uint64_t TagOf(const Operation& operation) {
  return operation.batch()->items[static_cast<size_t>(operation.items().front())].read.tag;
}

// The tags of all that may start now; they stay in `started`.
std::string Start(ReadQueue& queue, std::vector<std::unique_ptr<Operation>>& started) {
  std::string tags;
  while (auto operation = queue.TryPop()) {
    tags += std::to_string(TagOf(*operation)) + " ";
    started.push_back(std::move(operation));
  }
  return tags;
}

void End(ReadQueue& queue, std::unique_ptr<Operation> operation) {
  queue.Release(*operation);
  queue.Settle(std::move(operation));
}

TEST(DemandStartsInOrderUpToDepth) {
  ReadQueue queue(2, 1);
  Script script;
  std::vector<std::unique_ptr<Operation>> started;
  queue.Push(script.Reads({1, 2, 3}, false));
  CHECK_EQ(Start(queue, started), std::string("1 2 "));
  End(queue, std::move(started[1]));
  CHECK_EQ(Start(queue, started), std::string("3 "));
  End(queue, std::move(started[0]));
  End(queue, std::move(started[2]));
  CHECK_EQ(script.Told(), std::string("2 1 3 "));
  queue.Drain();
  CHECK_EQ(queue.counts().errors, uint64_t{3});
}

TEST(ALimitLetsFewerStart) {
  ReadQueue queue(8, 4);
  queue.Limit(2, 1);
  CHECK_EQ(queue.depth(), 2);
  CHECK_EQ(queue.background_depth(), 1);
  Script script;
  std::vector<std::unique_ptr<Operation>> started;
  queue.Push(script.Reads({1, 2}, false));
  queue.Push(script.Reads({10, 11}, true));
  CHECK_EQ(Start(queue, started), std::string("1 2 10 "));
  for (auto& operation : started) End(queue, std::move(operation));
  started.clear();
  CHECK_EQ(Start(queue, started), std::string("11 "));
  End(queue, std::move(started[0]));
  queue.Drain();
}

TEST(BackgroundStartsOnlyWhileNoDemandWaits) {
  ReadQueue queue(1, 1);
  Script script;
  std::vector<std::unique_ptr<Operation>> started;
  queue.Push(script.Reads({10, 11}, true));
  queue.Push(script.Reads({1, 2}, false));
  // 2 waits for depth, so no background read starts although its own depth is free.
  CHECK_EQ(Start(queue, started), std::string("1 "));
  End(queue, std::move(started[0]));
  // Now none waits: one background read, beside the demand read in flight.
  CHECK_EQ(Start(queue, started), std::string("2 10 "));
  // A background read in flight takes nothing from demand.
  End(queue, std::move(started[1]));
  queue.Push(script.Reads({3}, false));
  CHECK_EQ(Start(queue, started), std::string("3 "));
  End(queue, std::move(started[3]));
  CHECK_EQ(Start(queue, started), std::string(""));
  End(queue, std::move(started[2]));
  CHECK_EQ(Start(queue, started), std::string("11 "));
  End(queue, std::move(started[4]));
  queue.Drain();
}

TEST(CancelDropsWhatHasNotStarted) {
  ReadQueue queue(1, 1);
  Script script;
  std::vector<std::unique_ptr<Operation>> started;
  queue.Push(script.Reads({10, 11, 12}, true));
  queue.Push(script.Reads({}, false));
  CHECK_EQ(Start(queue, started), std::string("10 "));
  CHECK_EQ(queue.CancelBackground(), 2);
  CHECK_EQ(script.Told(), std::string("11x 12x "));
  CHECK_EQ(queue.CancelBackground(), 0);
  End(queue, std::move(started[0]));
  CHECK_EQ(script.Told(), std::string("10 "));
  queue.Drain();
  CHECK_EQ(queue.counts().cancelled, uint64_t{2});
}

TEST(AReadThatIsHalfInFlightIsToldWhenThatHalfEnds) {
  ReadQueue queue(1, 1);
  Script script;
  auto operations = script.Reads({7}, true);
  operations[0]->batch()->items[0].n_pending = 2;
  operations.push_back(std::make_unique<Operation>(*operations[0]));
  queue.Push(std::move(operations));
  auto half = queue.TryPop();
  CHECK_EQ(queue.CancelBackground(), 1);
  CHECK_EQ(script.Told(), std::string(""));
  End(queue, std::move(half));
  CHECK_EQ(script.Told(), std::string("7x "));
  CHECK_EQ(queue.counts().cancelled, uint64_t{1});
  queue.Drain();
}

TEST(PromotedReadsGoBehindDemandAndAreNotCancelled) {
  ReadQueue queue(1, 1);
  Script script;
  std::vector<std::unique_ptr<Operation>> started;
  queue.Push(script.Reads({1, 2}, false));
  queue.Push(script.Reads({10, 11, 12}, true));
  queue.Promote(11);
  CHECK_EQ(queue.CancelBackground(), 2);
  CHECK_EQ(script.Told(), std::string("10x 12x "));
  CHECK_EQ(Start(queue, started), std::string("1 "));
  End(queue, std::move(started[0]));
  CHECK_EQ(Start(queue, started), std::string("2 "));
  End(queue, std::move(started[1]));
  CHECK_EQ(Start(queue, started), std::string("11 "));
  End(queue, std::move(started[2]));
  queue.Drain();
}

TEST(PopEndsWhenClosedAndEmpty) {
  ReadQueue queue(4, 1);
  Script script;
  queue.Push(script.Reads({1}, false));
  queue.Close();
  auto operation = queue.Pop();
  CHECK(operation != nullptr);
  CHECK(queue.Pop() == nullptr);
  End(queue, std::move(operation));
  queue.Drain();
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

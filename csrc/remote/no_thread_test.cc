// What becomes of both ends where no thread is to be had. Here the C library's threads are this file's own.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

#include "remote/remote_source.h"
#include "remote/testing/ends.h"

namespace {

std::atomic<int> n_left{-1};  // threads that may still be started; -1: as many as there are

}  // namespace

extern "C" __attribute__((visibility("default"))) int pthread_create(
    pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  if (n_left == 0) return EAGAIN;
  if (n_left > 0) n_left--;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return create(thread, attributes, run, argument);
}

namespace remoe {
namespace {

using testing::Engine;
using testing::Eventually;
using testing::Fake;
using testing::RawWorker;
using testing::SomeWelcome;

// So many threads may be started while it is there.
class Only {
 public:
  explicit Only(int n) { n_left = n; }
  ~Only() { n_left = -1; }
};

bool Says(const std::string& text, const char* what) {
  return text.find("cannot start a thread that ") != std::string::npos &&
         text.find(what) != std::string::npos;
}

TEST(AWorkerEndsWithAnError) {
  for (const int n_threads : {0, 1}) {
    Fake fake;
    auto made = WorkerServer::Make({"127.0.0.1", 0}, nullptr, SomeWelcome(), &fake, &fake, {});
    CHECK_OK(made.status());
    const Only only(n_threads);
    const Status status = made.value()->Run();
    CHECK(status.code() == Code::kOutOfMemory);
    CHECK(Says(status.message(), n_threads == 0 ? "computes" : "reads what engines wish for"));
  }
}

TEST(AnEngineThatCannotCheckItsPeersHasNone) {
  const Only only(0);
  const auto made = Engine({{"127.0.0.1", 1}});
  CHECK(made.status().code() == Code::kOutOfMemory &&
        Says(made.status().message(), "checks peers"));
}

TEST(APeerWithoutAThreadIsNotUsed) {
  const Only only(1);
  auto made = Engine({{"127.0.0.1", 1}});
  CHECK_OK(made.status());
  CHECK(made.value()->Await(0));
  CHECK_EQ(made.value()->peers()[0].peer.state, std::string("refused"));
  const std::vector<PeerLine> lines = made.value()->TakeLines();
  CHECK(lines.size() == 1 && Says(lines[0].text, "is not used"));
}

TEST(APeerIsProvenOnceThreadsAreToBeHadAgain) {
  RawWorker worker;
  worker.Start();
  auto made = Engine({worker.address()});
  CHECK_OK(made.status());
  RemoteSource& source = *made.value();
  CHECK(source.Await(120000));
  const auto peer = [&] { return source.peers()[0].peer; };
  {
    const Only only(0);
    const testing::StepRows rows(std::vector<float>(testing::kIn));
    std::vector<Placement> experts(1);
    std::vector<bool> taken(1);
    Arrivals arrivals;
    Demand demand;
    demand.experts = &experts;
    demand.rows = &rows;
    demand.arrivals = &arrivals;
    demand.ticket = arrivals.Open();
    source.Begin(demand, &taken);  // shows how the layer is computed, which is to be proven
    CHECK(!taken[0]);
    arrivals.Close();
    CHECK(Eventually([&] { return Says(peer().why, "proves it"); }));
  }
  CHECK(Eventually([&] { return peer().state == "serving" && source.Await(0); }));
}

TEST(ANameIsNotLookedUp) {
  const Only only(2);
  auto made = Engine({{"board", 1}});
  CHECK_OK(made.status());
  CHECK(made.value()->Await(120000));
  CHECK(Says(made.value()->peers()[0].peer.why, "looks a name up"));
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

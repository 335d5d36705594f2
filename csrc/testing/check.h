// A minimal unit-test harness: TEST(name) { CHECK(...); CHECK_EQ(a, b); } and REMOE_TEST_MAIN().
//
// A test program runs every TEST in file order, prints each failure with its line, and exits with 1
// if any failed. Its last line is "N passed, M failed". Single-threaded: start threads inside a
// test, join them there, and CHECK only from the test's own thread.
#ifndef REMOE_TESTING_CHECK_H_
#define REMOE_TESTING_CHECK_H_

#include <cstdio>
#include <iostream>
#include <vector>

namespace remoe::testing {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

inline int& Failures() {
  static int failures = 0;
  return failures;
}

struct Register {
  Register(const char* name, void (*run)()) { Cases().push_back({name, run}); }
};

inline int RunAll() {
  int passed = 0, failed = 0;
  for (const Case& test : Cases()) {
    const int before = Failures();
    test.run();
    const bool good = Failures() == before;
    (good ? passed : failed)++;
    if (!good) std::cerr << "FAILED " << test.name << "\n";
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace remoe::testing

#define TEST(name)                                                      \
  static void name();                                                   \
  static const ::remoe::testing::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      ::remoe::testing::Failures()++;                                   \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition "\n"; \
    }                                                                   \
  } while (false)

// Of both sides a copy: a reference into what the expression makes, as f().g, would outlive it.
#define CHECK_EQ(left, right)                                                            \
  do {                                                                                   \
    const auto left_ = (left);                                                           \
    const auto right_ = (right);                                                         \
    if (!(left_ == right_)) {                                                            \
      ::remoe::testing::Failures()++;                                                    \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #left " == " #right ": " << left_ \
                << " != " << right_ << "\n";                                             \
    }                                                                                    \
  } while (false)

// Prints the message of a failed Status.
#define CHECK_OK(expression)                                                         \
  do {                                                                               \
    const auto status_ = (expression);                                               \
    if (!status_.ok()) {                                                             \
      ::remoe::testing::Failures()++;                                                \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << status_.message() << "\n"; \
    }                                                                                \
  } while (false)

#define REMOE_TEST_MAIN()              \
  int main() {                         \
    return ::remoe::testing::RunAll(); \
  }

#endif  // REMOE_TESTING_CHECK_H_

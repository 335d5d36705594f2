// The main() of a fuzzer: as a test without arguments, or for as long as it is told.
//
//     NAME                              some fixed seeds, as the test suite runs it
//     NAME --seconds 3600 --seed 1      as long as that, from that seed on
//
// What it is told on the command line comes in pairs; what it does not know it leaves aside.
// A function that owns nothing. Like check.h it is for one thread.
#ifndef REMOE_TESTING_FUZZ_MAIN_H_
#define REMOE_TESTING_FUZZ_MAIN_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "testing/check.h"

namespace remoe::testing {

// `run_for`: runs for so many seconds from a seed on. RETURNS: the exit status.
inline int FuzzMain(int argc, char** argv, int (*run_for)(double seconds, uint64_t seed)) {
  double seconds = 0;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--seconds") == 0) seconds = std::atof(argv[i + 1]);
    if (std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  return seconds > 0 ? run_for(seconds, seed) : RunAll();
}

}  // namespace remoe::testing

#endif  // REMOE_TESTING_FUZZ_MAIN_H_

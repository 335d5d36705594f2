#include "storage/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "testing/check.h"

namespace remoe {
namespace {

std::string MakeFile(size_t n_bytes) {
  char path[] = "open_file_test_XXXXXX";
  const int fd = ::mkstemp(path);
  const std::vector<char> bytes(n_bytes, 'x');
  if (::write(fd, bytes.data(), n_bytes) != static_cast<ssize_t>(n_bytes)) std::abort();
  ::close(fd);
  return path;
}

void Append(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND);
  if (::write(fd, "y", 1) != 1) std::abort();
  ::close(fd);
}

bool Says(const Status& status, const std::string& text) {
  return status.code() == Code::kIo && status.message().find(text) != std::string::npos;
}

TEST(AnUntouchedFileIsUnchanged) {
  const std::string path = MakeFile(10000);
  const auto file = OpenFile::Open(path, {});
  CHECK_OK(file.status());
  CHECK_EQ(file.value().n_bytes(), uint64_t{10000});
  CHECK_EQ(file.value().CurrentBytes(), uint64_t{10000});
  CHECK_OK(file.value().CheckUnchanged());
  ::unlink(path.c_str());
  CHECK_OK(file.value().CheckUnchanged());  // the bytes are still there
}

TEST(AModifiedTruncatedOrReplacedFileIsNamed) {
  const std::string path = MakeFile(10000);
  {
    const auto file = OpenFile::Open(path, {});
    Append(path);
    CHECK(Says(file.value().CheckUnchanged(), path + " was modified"));
  }
  {
    const auto file = OpenFile::Open(path, {});
    CHECK_EQ(::truncate(path.c_str(), 500), 0);
    CHECK(
        Says(file.value().CheckUnchanged(), path + " was truncated: 500 bytes are left of 10001"));
  }
  {
    const auto file = OpenFile::Open(path, {});
    const std::string other = MakeFile(600);
    CHECK_EQ(std::rename(other.c_str(), path.c_str()), 0);
    CHECK(Says(file.value().CheckUnchanged(), path + " was replaced"));
  }
  ::unlink(path.c_str());
}

TEST(ATouchedOrCopiedFileOfTheSameBytesIsUnchanged) {
  const std::string path = MakeFile(3 << 20);
  for (const bool direct : {true, false}) {
    OpenFileOptions options;
    options.direct = direct;
    const auto file = OpenFile::Open(path, options);
    const struct timespec times[2] = {{1, 0}, {1, 0}};
    CHECK_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    CHECK_OK(file.value().CheckUnchanged());
    const std::string copy = MakeFile(3 << 20);
    CHECK_EQ(std::rename(copy.c_str(), path.c_str()), 0);
    CHECK_OK(file.value().CheckUnchanged());
  }
  {
    const auto file = OpenFile::Open(path, {});
    const int fd = ::open(path.c_str(), O_WRONLY);
    const std::string other(2 << 20, 'z');  // in place, and as long as before
    CHECK_EQ(::pwrite(fd, other.data(), other.size(), 1 << 19), static_cast<ssize_t>(other.size()));
    ::close(fd);
    CHECK(Says(file.value().CheckUnchanged(), path + " was modified"));
  }
  ::unlink(path.c_str());
}

TEST(OneByteThatChangedIsFoundThoughTheTimeIsSetBack) {
  const std::string path = MakeFile(3 << 20);
  for (const bool direct : {true, false}) {
    OpenFileOptions options;
    options.direct = direct;
    // Clocks of file systems tick a few milliseconds.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    struct stat before = {};
    CHECK_EQ(::stat(path.c_str(), &before), 0);
    const auto file = OpenFile::Open(path, options);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const int fd = ::open(path.c_str(), O_WRONLY);
    CHECK_EQ(::pwrite(fd, direct ? "1" : "2", 1, (1 << 20) + 12345), ssize_t{1});
    const struct timespec times[2] = {before.st_atim, before.st_mtim};
    CHECK_EQ(::futimens(fd, times), 0);
    ::close(fd);
    CHECK(Says(file.value().CheckUnchanged(), path + " was modified"));
  }
  ::unlink(path.c_str());
}

TEST(AFileWhoseNameLeadsNowhereIsReadOn) {
  const std::string folder = MakeFile(0);
  ::unlink(folder.c_str());
  CHECK_EQ(::mkdir(folder.c_str(), 0700), 0);
  const std::string path = folder + "/f", elsewhere = folder + ".moved";
  const std::string made = MakeFile(10000);
  CHECK_EQ(std::rename(made.c_str(), path.c_str()), 0);
  const auto file = OpenFile::Open(path, {});
  CHECK_OK(file.status());
  CHECK_EQ(std::rename(folder.c_str(), elsewhere.c_str()), 0);
  CHECK_OK(file.value().CheckUnchanged());
  ::close(::open(folder.c_str(), O_CREAT | O_WRONLY, 0600));  // where the folder was, a file
  CHECK_OK(file.value().CheckUnchanged());
  ::unlink(folder.c_str());
  ::unlink((elsewhere + "/f").c_str());
  ::rmdir(elsewhere.c_str());
}

TEST(WhatIsNoRegularFileIsRefused) {
  CHECK(OpenFile::Open("/dev/null", {}).status().code() == Code::kInvalidArgument);
  CHECK(OpenFile::Open(".", {}).status().code() == Code::kInvalidArgument);
  CHECK(Says(OpenFile::Open("no-such-file", {}).status(), "no-such-file"));
}

TEST(ARefusedDirectReadIsNoted) {
  const std::string path = MakeFile(100);
  OpenFileOptions options;
  options.refuse_direct = true;
  const auto file = OpenFile::Open(path, options);
  CHECK_OK(file.status());
  CHECK(!file.value().direct());
  CHECK(file.value().note().find(path) != std::string::npos);
  options.direct = false;
  CHECK(OpenFile::Open(path, options).value().note().empty());
  ::unlink(path.c_str());
}

TEST(AnEmptyFileOpens) {
  const std::string path = MakeFile(0);
  CHECK_OK(OpenFile::Open(path, {}).status());
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

// Where a mapped file is found again, and which of its pages belong to what.
#include <sys/mman.h>

#include <fcntl.h>
#include <unistd.h>

#include "base/memory_page.h"
#include "plugin/dense_pages.h"
#include "plugin/model_fingerprint.h"
#include "plugin/process_maps.h"
#include "plugin/sha256.h"
#include "testing/check.h"
#include "testing/gguf_writer.h"

namespace remoe::plugin {
namespace {

TEST(PagesAroundRangesAreMerged) {
  const uint64_t page = MemoryPageBytes();
  const std::vector<ByteRange> pages =
      PagesAround({{2 * page + 808, 2 * page + 809}, {100, page + 1}, {2 * page - 1, 2 * page}});
  CHECK_EQ(pages.size(), 1u);
  CHECK(pages[0].begin == 0 && pages[0].end == 3 * page);
  CHECK_EQ(PagesAround({{0, 1}, {2 * page, 2 * page + 1}}).size(), 2u);
  CHECK(PagesAround({}).empty());
}

TEST(AMappedFileIsFoundByItsName) {
  testing::TemporaryFolder folder;
  const uint64_t n_bytes = 2 * MemoryPageBytes();
  const std::string path = folder.Write("a model.gguf", std::string(n_bytes, 'x'));
  const int file = open(path.c_str(), O_RDONLY);
  void* at = mmap(nullptr, n_bytes, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  const auto find = [at] {
    std::vector<FileMapping> found;
    for (const FileMapping& each : FileMappings()) {
      if (each.holds(reinterpret_cast<uintptr_t>(at))) found.push_back(each);
    }
    return found;
  };
  CHECK_EQ(find().size(), 1u);
  CHECK(find()[0].path == path && find()[0].offset == 0);
  CHECK_EQ(find()[0].end - find()[0].begin, n_bytes);
  unlink(path.c_str());
  CHECK(find().empty());  // what has no name any more cannot be opened
  munmap(at, n_bytes);
}

TEST(DigestsAreThoseOfTheStandard) {
  Sha256 empty;
  CHECK(empty.Hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 pieces;
  const std::string text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  pieces.Add(text.data(), 5);
  pieces.Add(text.data() + 5, text.size() - 5);
  CHECK(pieces.Hex() == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(RoutersAreKnownByName) {
  CHECK(IsRouter("blk.0.ffn_gate_inp.weight") && IsRouter("blk.17.exp_probs_b.bias"));
  CHECK(!IsRouter("blk.0.ffn_gate_inp_shexp.weight") && !IsRouter("blk.00.ffn_gate_inp.weight"));
  CHECK(!IsRouter("blk.x.ffn_gate_inp.weight") && !IsRouter("output.weight"));
}

}  // namespace
}  // namespace remoe::plugin

REMOE_TEST_MAIN()

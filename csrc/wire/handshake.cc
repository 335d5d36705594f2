#include "wire/handshake.h"

#include <algorithm>

#include "wire/bytes.h"
#include "wire/frame.h"

namespace remoe {

namespace {

constexpr size_t kServedBytes = 16, kWishedBytes = 12;

struct Row {
  const char* what;
  std::string Identity::* field;
};
constexpr Row kTexts[] = {
    {"version of remoe-edge", &Identity::engine},
    {"llama.cpp", &Identity::llama_build},
    {"processor", &Identity::architecture},
    {"processor features", &Identity::cpu_features},
    {"model", &Identity::model},
    {"layout of experts", &Identity::layout},
};

void Write(const Identity& identity, ByteWriter* writer) {
  for (const Row& row : kTexts) writer->Text(identity.*row.field);
  writer->Number(static_cast<uint8_t>(identity.repacked));
}

Identity Read(ByteReader* reader) {
  Identity identity;
  for (const Row& row : kTexts) identity.*row.field = reader->Text();
  identity.repacked = reader->Number<uint8_t>() != 0;
  return identity;
}

void WriteServed(const std::vector<ServedExpert>& experts, ByteWriter* writer) {
  writer->Number(static_cast<uint32_t>(experts.size()));
  for (const ServedExpert& each : experts) {
    writer->Number(each.layer);
    writer->Number(each.expert);
    writer->Number(each.sum);
  }
}

// The count is checked against what is left before anything is allocated for it.
bool ReadServed(ByteReader* reader, std::vector<ServedExpert>* experts) {
  const auto n = reader->Number<uint32_t>();
  if (!reader->ok() || reader->left() / kServedBytes < n) return false;
  experts->resize(n);
  for (ServedExpert& each : *experts) {
    each.layer = reader->Number<uint32_t>();
    each.expert = reader->Number<uint32_t>();
    each.sum = reader->Number<uint64_t>();
  }
  return reader->ok();
}

std::string Shown(const std::string& value) {
  constexpr size_t kMost = 60;
  return "'" + Printable(value.size() <= kMost ? value : value.substr(0, kMost) + "...") + "'";
}

}  // namespace

std::string WhyOther(const Identity& ours, const Identity& its) {
  for (const Row& row : kTexts) {
    if (ours.*row.field == its.*row.field) continue;
    return std::string("its ") + row.what + " is " + Shown(its.*row.field) + ", ours is " +
           Shown(ours.*row.field);
  }
  if (ours.repacked == its.repacked) return "";
  return its.repacked ? "it repacks weights (--repack), and this engine does not"
                      : "it does not repack weights, and this engine does (--repack)";
}

std::vector<uint8_t> Identity::Bytes() const {
  ByteWriter writer;
  Write(*this, &writer);
  return writer.Take();
}

Result<Identity> Identity::Parse(const std::vector<uint8_t>& bytes) {
  ByteReader reader(bytes.data(), bytes.size());
  Identity identity = Read(&reader);
  if (!reader.ok() || reader.left() != 0) return Status(Code::kCorrupt, "a damaged greeting");
  return identity;
}

std::vector<uint8_t> Welcome::Bytes() const {
  ByteWriter writer;
  Write(identity, &writer);
  writer.Number(credits);
  writer.Number(max_rows);
  writer.Number(capacity);
  writer.Number(static_cast<uint8_t>(sends_weights));
  WriteServed(experts, &writer);
  return writer.Take();
}

Result<Welcome> Welcome::Parse(const std::vector<uint8_t>& bytes) {
  ByteReader reader(bytes.data(), bytes.size());
  Welcome welcome;
  welcome.identity = Read(&reader);
  welcome.credits = reader.Number<uint32_t>();
  welcome.max_rows = reader.Number<uint32_t>();
  welcome.capacity = reader.Number<uint32_t>();
  welcome.sends_weights = reader.Number<uint8_t>() != 0;
  const bool sane = std::max({welcome.credits, welcome.max_rows, welcome.capacity}) <= INT32_MAX;
  if (!ReadServed(&reader, &welcome.experts) || reader.left() != 0 || !sane) {
    return Status(Code::kCorrupt, "a damaged welcome");
  }
  return welcome;
}

std::vector<uint8_t> WishBytes(const std::vector<WishedExpert>& wish) {
  ByteWriter writer;
  for (const WishedExpert& each : wish) {
    writer.Number(each.layer);
    writer.Number(each.expert);
    writer.Number(each.worth);
  }
  return writer.Take();
}

Result<std::vector<WishedExpert>> ParseWish(const std::vector<uint8_t>& bytes) {
  if (bytes.size() % kWishedBytes != 0) return Status(Code::kCorrupt, "a damaged wish");
  ByteReader reader(bytes.data(), bytes.size());
  std::vector<WishedExpert> wish(bytes.size() / kWishedBytes);
  for (WishedExpert& each : wish) {
    each.layer = reader.Number<uint32_t>();
    each.expert = reader.Number<uint32_t>();
    each.worth = reader.Number<float>();
    if (!(each.worth >= 0 && each.worth <= 1)) return Status(Code::kCorrupt, "a damaged wish");
  }
  return wish;
}

std::vector<uint8_t> HeldChange::Bytes() const {
  ByteWriter writer;
  WriteServed(dropped, &writer);
  WriteServed(added, &writer);
  return writer.Take();
}

Result<HeldChange> HeldChange::Parse(const std::vector<uint8_t>& bytes) {
  ByteReader reader(bytes.data(), bytes.size());
  HeldChange change;
  const bool read = ReadServed(&reader, &change.dropped) && ReadServed(&reader, &change.added);
  if (!read || reader.left() != 0) return Status(Code::kCorrupt, "a damaged list of experts");
  return change;
}

}  // namespace remoe

#include "cache/profile.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "cache/cache.h"
#include "cache/replay.h"
#include "cache/reuse_biased.h"
#include "cache/reuse_columns.h"
#include "testing/check.h"

namespace remoe {
namespace {

constexpr int kLayers = 3, kExperts = 16, kTopK = 4;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Geometry Shape(int n_layers, int n_experts, int n_slots) {
  Geometry geometry;
  geometry.n_layers = n_layers;
  geometry.n_experts = n_experts;
  geometry.n_slots = n_slots;
  return geometry;
}

// Weights, links and uses of a model of kLayers times kExperts.
Profile Whole() {
  Profile profile = DefaultProfile();
  profile.n_layers = kLayers;
  profile.n_experts = kExperts;
  profile.n_contexts = ReuseBiasedPolicy::kContexts;
  profile.fingerprint = "f";
  profile.meta = "{\"model\": \"m\"}";
  profile.scales.assign(kLayers * profile.n_contexts, 0.01f);
  for (int i = 0; i < kLayers * profile.n_contexts * kExperts * kExperts; i++) {
    profile.links.push_back(static_cast<int8_t>(i * 37 % 256 - 128));
  }
  for (int i = 0; i < kLayers * kExperts; i++) profile.uses.push_back(static_cast<float>(i % 7));
  return profile;
}

std::vector<Profile> Valid() {
  Profile used;
  used.n_layers = kLayers;
  used.n_experts = kExperts;
  used.uses.assign(kLayers * kExperts, 2);
  return {Whole(), DefaultProfile(), used};
}

// Makes size and checksum those of a whole profile again.
void Seal(std::vector<uint8_t>* bytes) {
  if (bytes->size() < 128) return;
  const uint64_t size = bytes->size();
  std::memcpy(bytes->data() + 104, &size, sizeof size);
  std::memset(bytes->data() + 112, 0, 8);
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint8_t byte : *bytes) hash = (hash ^ byte) * 0x100000001b3;
  std::memcpy(bytes->data() + 112, &hash, sizeof hash);
}

void Put(std::vector<uint8_t>* bytes, size_t at, uint32_t value) {
  if (at + 4 <= bytes->size()) std::memcpy(bytes->data() + at, &value, sizeof value);
}

// Runs a cache under the profile; every table is looked into, links and averages included.
void Use(const Profile& profile) {
  const Geometry geometry = Shape(kLayers, kExperts, 12);
  auto made = MakePolicy("reuse-biased", geometry, std::make_shared<const Profile>(profile));
  if (!made.ok()) return;
  Cache cache(geometry, std::move(made.value()));
  Replayer replayer(&cache);
  std::vector<float> probs(kExperts, 0.25f);
  probs[3] = kNan;
  for (int step = 0; step < 8; step++) {
    for (int layer = 0; layer < kLayers; layer++) {
      uint16_t experts[kTopK];
      for (int k = 0; k < kTopK; k++) {
        experts[k] = static_cast<uint16_t>((step * 5 + layer + 3 * k) % kExperts);
      }
      Event event;
      event.layer = layer;
      event.step = step;
      event.experts = experts;
      event.n = kTopK;
      event.probs = probs.data();
      event.n_prob_tokens = 1;
      int missed = 0;
      CHECK_OK(replayer.Run(event, &missed));
      CHECK(missed >= 0 && missed <= kTopK);
    }
  }
  CHECK_EQ(cache.resident(), 12);
}

TEST(WhatIsSerialisedIsParsed) {
  for (const Profile& profile : Valid()) {
    CHECK_OK(profile.Check());
    const std::vector<uint8_t> bytes = profile.Serialize();
    Result<Profile> parsed = Profile::Parse(bytes.data(), bytes.size(), "p");
    CHECK_OK(parsed.status());
    CHECK(parsed.value().Serialize() == bytes);
    Use(parsed.value());
  }
}

TEST(CountsThatContradictEachOtherAreRefused) {
  struct Header {
    uint32_t layers, experts, weights, shares, contexts, uses;
  };
  const Header wrong[] = {
      {0, 0, 0, 0, 5, 0},      // links of no layers: read out of bounds once
      {0, 16, 0, 0, 0, 0},     // experts of no layers
      {3, 0, 0, 0, 5, 0},      // layers of no experts
      {0, 0, 27, 0, 0, 0},     // weights for no cache
      {0, 0, 0, 1, 0, 0},      // a cache without weights
      {0, 0, 0, 0, 0, 7},      // uses of no experts
      {3, 16, 0, 0, 0, 47},    // uses of all experts but one
      {4097, 1, 0, 0, 0, 0},   // more than any model has
      {1, 16385, 0, 0, 0, 0},  //
      {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
  };
  for (const Header& h : wrong) {
    std::vector<uint8_t> bytes(136, 0);
    std::memcpy(bytes.data(), "REMOEPRF", 8);
    const uint32_t fields[] = {1, 136, h.layers, h.experts, h.weights, h.shares, h.contexts, 2};
    std::memcpy(bytes.data() + 8, fields, sizeof fields);
    Put(&bytes, 120, h.uses);
    std::memcpy(bytes.data() + 128, "{}", 2);
    // As long as the body would have to be, where that is a length at all.
    const uint64_t body =
        4 * (uint64_t{h.shares} * (1 + h.weights) + h.layers * h.contexts + h.uses) +
        uint64_t{h.layers} * h.contexts * h.experts * h.experts;
    if (body < 1 << 20) bytes.resize(136 + body, 0);
    Seal(&bytes);
    const Status status = Profile::Parse(bytes.data(), bytes.size(), "p").status();
    CHECK(status.code() == Code::kCorrupt);
    CHECK(status.message().find("contradicts itself") != std::string::npos);
  }
}

TEST(NumbersThatAreNoneAreRefusedByName) {
  for (const float wrong : {kNan, kInf, -kInf, 2e6f}) {
    Profile profile = Whole();
    profile.weights[kReuseColumnCount + 3] = wrong;
    CHECK(profile.Check().message().find("weight use-0.9 for a cache of 0.25") !=
          std::string::npos);
    profile = Whole();
    profile.scales[6] = wrong;
    CHECK(profile.Check().message().find("scale 1 of layer 1") != std::string::npos);
    profile = Whole();
    profile.shares[1] = wrong;
    CHECK(profile.Check().message().find("cache sizes") != std::string::npos);
  }
  for (const float wrong : {kNan, kInf, -1.0f}) {
    Profile profile = Whole();
    profile.uses[17] = wrong;
    CHECK(profile.Check().message().find("uses of expert 1 of layer 1") != std::string::npos);
    CHECK(!ReuseBiasedPolicy::Fits(profile, Shape(kLayers, kExperts, 4)).ok());
  }
}

TEST(AProfileThatWasPutTogetherWrongIsNotAttached) {
  const Geometry geometry = Shape(kLayers, kExperts, 4);
  Profile profile = Whole();
  profile.links.pop_back();
  CHECK(ReuseBiasedPolicy::Fits(profile, geometry).code() == Code::kCorrupt);
  profile = Whole();
  profile.n_contexts = 2;
  profile.scales.resize(kLayers * 2);
  profile.links.resize(kLayers * 2 * kExperts * kExperts);
  CHECK_OK(profile.Check());
  CHECK(ReuseBiasedPolicy::Fits(profile, geometry).message().find("2 kinds") != std::string::npos);
  CHECK(ReuseBiasedPolicy::Fits(Whole(), Shape(2, kExperts, 4)).code() == Code::kInvalidArgument);
  CHECK(ReuseBiasedPolicy::Fits(Whole(), Shape(kLayers, 8, 4)).code() == Code::kInvalidArgument);
}

TEST(TablesAreNotMadeByWhatAFileClaims) {
  // A trace's header may say so; the links that reuse-biased learns would take 4 TiB.
  CHECK(MakePolicy("lru", Shape(4096, 16384, 8)).status().code() == Code::kInvalidArgument);
  CHECK(MakePolicy("reuse-biased", Shape(256, 16384, 8)).status().code() == Code::kInvalidArgument);
  CHECK_OK(MakePolicy("reuse-biased", Shape(94, 1024, 8)).status());
}

// Refused, or sound: nothing between.
TEST(MutatedProfilesAreRefusedOrSound) {
  const uint32_t values[] = {0,          1,       2,        3,          5,
                             7,          16,      17,       27,         64,
                             65,         128,     136,      1023,       4096,
                             4097,       16384,   65535,    0x7f800000, 0x7fc00000,
                             0xff800000, 1 << 24, 1u << 31, UINT32_MAX, UINT32_MAX - 7};
  std::mt19937 random(20261126);
  int refused = 0, sound = 0;
  for (const Profile& profile : Valid()) {
    const std::vector<uint8_t> whole = profile.Serialize();
    for (int round = 0; round < 2000; round++) {
      std::vector<uint8_t> bytes = whole;
      switch (random() % 5) {
        case 0:  // bits anywhere
          for (unsigned n = 1 + random() % 4; n > 0; n--) {
            bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1u << (random() % 8));
          }
          break;
        case 1:  // a field of the header
          Put(&bytes, 8 + 4 * (random() % 8), values[random() % std::size(values)]);
          if (random() % 2) Put(&bytes, 120, values[random() % std::size(values)]);
          break;
        case 2:  // several fields, as the next version might
          for (unsigned n = 0; n < 3; n++) {
            Put(&bytes, 12 + 4 * (random() % 7), values[random() % std::size(values)] % 100);
          }
          break;
        case 3:  // cut, or grown
          bytes.resize(random() % (bytes.size() + 64), 0x3f);
          break;
        default:  // a number
          Put(&bytes, 128 + 4 * (random() % (bytes.size() / 4 - 32)),
              values[random() % std::size(values)]);
      }
      if (random() % 8 != 0) Seal(&bytes);
      Result<Profile> parsed = Profile::Parse(bytes.data(), bytes.size(), "p");
      if (!parsed.ok()) {
        CHECK(parsed.status().code() == Code::kCorrupt);
        CHECK(parsed.status().message().find('\n') == std::string::npos);
        refused++;
        continue;
      }
      sound++;
      CHECK_OK(parsed.value().Check());
      Use(parsed.value());
    }
  }
  // Neither answer is given out of habit.
  CHECK(refused > 1000);
  CHECK(sound > 1000);
}

}  // namespace
}  // namespace remoe

REMOE_TEST_MAIN()

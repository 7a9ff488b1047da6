// The bytes that failures leave undefined, against a model of single bytes, in whatever order things are heard.
#include "refrain/device/undefined.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

namespace refrain {
namespace {

constexpr size_t kBytes = 24;

struct Event {
  uint64_t allocation = 1;
  size_t begin = 0, end = 0;
  uint64_t place = 0;
  bool failed = false;
};

/// The first failure of a byte as seen by `place`: none after the last write of it before `place`.
uint64_t first_failure(const std::vector<Event>& events, uint64_t allocation, size_t byte, uint64_t place) {
  std::vector<Event> own;
  for (const Event& event : events) {
    if (event.allocation == allocation && event.begin <= byte && byte < event.end && event.place < place)
      own.push_back(event);
  }
  std::ranges::sort(own, {}, &Event::place);
  uint64_t first = UINT64_MAX;
  for (const Event& event : own) first = !event.failed ? UINT64_MAX : std::min(first, event.place);
  return first;
}

Event random_event(std::mt19937& rng, uint64_t place) {
  Event event;
  event.allocation = 1 + rng() % 2;
  event.begin = rng() % kBytes;
  event.end = event.begin + rng() % (kBytes - event.begin + 1);
  event.place = place;
  event.failed = rng() % 2 == 0;
  return event;
}

void hear(Undefined& undefined, const Event& event) {
  const Undefined::Range range{event.allocation, event.begin, event.end};
  if (event.failed) {
    undefined.add(range, event.place, std::make_shared<const std::string>(std::to_string(event.place)));
  } else {
    undefined.clear(range, event.place);
  }
}

TEST(UndefinedBytes, HeardInTheirOrderAgreeWithTheDefinition) {
  std::mt19937 rng(11);
  uint64_t undefined_bytes = 0, defined_bytes = 0;
  for (int round = 0; round < 2000; ++round) {
    Undefined undefined;
    std::vector<Event> events;
    for (uint64_t place = 1; place <= 12; ++place) {
      events.push_back(random_event(rng, place));
      hear(undefined, events.back());
      for (const uint64_t allocation : {1u, 2u}) {
        for (size_t byte = 0; byte < kBytes; ++byte) {
          const uint64_t expected = first_failure(events, allocation, byte, UINT64_MAX);
          const auto found = undefined.find({allocation, byte, byte + 1});
          ASSERT_EQ(found.failure != nullptr, expected != UINT64_MAX) << round << " byte " << byte;
          if (found.failure != nullptr) {
            ASSERT_EQ(*found.failure, std::to_string(expected));
          }
          (found.failure != nullptr ? undefined_bytes : defined_bytes) += 1;
        }
      }
      // A range has the first failure of its bytes.
      uint64_t first = UINT64_MAX;
      for (size_t byte = 3; byte < 17; ++byte)
        first = std::min(first, first_failure(events, 1, byte, UINT64_MAX));
      ASSERT_EQ(undefined.find({1, 3, 17}).place, first);
    }
    EXPECT_EQ(undefined.find({1, 5, 5}).failure, nullptr) << "no bytes";
    undefined.forget(1);
    EXPECT_EQ(undefined.find({1, 0, kBytes}).failure, nullptr);
    undefined.clear({2, 0, kBytes}, 100);
    EXPECT_FALSE(undefined.any());
  }
  EXPECT_GT(undefined_bytes, 100000u);
  EXPECT_GT(defined_bytes, 100000u);
}

// A submission that fails without running may be heard of before those that it comes after.
TEST(UndefinedBytes, HeardInAnyOrderAreUndefinedAllTheSame) {
  std::mt19937 rng(12);
  for (int round = 0; round < 20000; ++round) {
    Undefined undefined;
    std::vector<Event> events;
    // A write that succeeds is heard after all that lies before it: only failures come early.
    for (uint64_t place = 1; place <= 5; ++place) events.push_back(random_event(rng, place));
    std::vector<Event> order = events;
    for (size_t i = 1; i < order.size(); ++i) {
      for (size_t k = i; k > 0 && order[k].failed && rng() % 2 == 0; --k) std::swap(order[k], order[k - 1]);
    }
    for (const Event& event : order) hear(undefined, event);
    for (size_t byte = 0; byte < kBytes; ++byte) {
      const bool expected = first_failure(events, 1, byte, UINT64_MAX) != UINT64_MAX;
      ASSERT_EQ(undefined.find({1, byte, byte + 1}).failure != nullptr, expected) << round << ' ' << byte;
    }
  }
}

TEST(UndefinedBytes, OfALaterSubmissionDoNotConcernAnEarlierOne) {
  Undefined undefined;
  const auto why = std::make_shared<const std::string>("why");
  undefined.add({1, 0, 8}, 7, why);
  EXPECT_EQ(undefined.find({1, 0, 8}, 7).failure, nullptr);
  EXPECT_EQ(undefined.find({1, 0, 8}, 8).failure, why);
  undefined.give_up();
  EXPECT_NE(undefined.find({2, 0, 8}).failure, nullptr);
  undefined.clear({1, 0, 8}, 9);
  undefined.forget(1);
  EXPECT_TRUE(undefined.any());
}

}  // namespace
}  // namespace refrain

// The contract of backend.h as tests that run on every device of devices.cpp. What breaks the contract on
// purpose is tested in validate_test.cpp.
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "refrain/core/error.h"
#include "tests/conformance/conformance.h"

namespace refrain::backend::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

TEST_P(Conformance, Describes) {
  EXPECT_FALSE(device_->info.backend.empty());
  EXPECT_FALSE(device_->info.name.empty());
  EXPECT_GE(device_->info.queue_count, 2u);
  EXPECT_GE(device_->info.compute_units, 1u);
  EXPECT_GE(device_->info.buffer_alignment_bytes, 64u);
  EXPECT_EQ(device_->kernels.size(), test_kernels().size());
}

TEST_P(Conformance, EmptyPlan) {
  const PlanData plan;
  const auto program = device_->prepare(plan, {});
  EXPECT_TRUE(wait(submit(*program)));
  EXPECT_TRUE(wait(submit(*program)));
}

TEST_P(Conformance, Points) {
  PlanBuilder builder;
  builder.add(kFill, {out(view(cells()))}, {.launch = rows(kRows)});
  const auto first = device_->prepare(builder.plan, {});
  const auto second = device_->prepare(builder.plan, {.queue = 1});
  for (uint64_t i = 1; i <= 3; ++i) {
    const Point point = submit(*first);
    EXPECT_EQ(point.backend, device_->id);
    EXPECT_EQ(point.queue, 0u);
    EXPECT_EQ(point.value, i);
    EXPECT_TRUE(wait(point));
    EXPECT_GE(device_->completed(0), i);
  }
  EXPECT_EQ(submit(*second).value, 1u);
  EXPECT_TRUE(wait({device_->id, 1, 1}));
  EXPECT_TRUE(wait({device_->id, 0, 2})) << "a point that has passed stays passed";
}

// Random commands on a few buffers with random delays, against the same commands in order on the host.
class RandomPlan {
 public:
  static constexpr uint32_t kBuffers = 10;

  RandomPlan(uint32_t seed, uint32_t commands, const std::vector<const Allocation*>& buffers,
             uint32_t delay_us) {
    std::mt19937 random(seed);
    const auto pick = [&] { return static_cast<uint32_t>(random() % kBuffers); };
    for (uint32_t i = 0; i < commands; ++i) {
      const uint32_t a = pick(), b = pick();
      uint32_t c = pick();
      while (c == a || c == b) c = (c + 1) % kBuffers;
      PlanBuilder::Options options;
      options.launch = {kRows, 1, 1, 0};
      options.constants = {static_cast<uint32_t>(random()), delay_us, static_cast<uint32_t>(random() | 1), 0};
      const auto at = [&](uint32_t index) { return view(buffers[index]); };
      switch (random() % 4) {
        case 0:
          builder.add(kFill, {out(at(c))}, options);
          steps_.push_back([=](auto& x) { x[c] = options.constants.value; });
          break;
        case 1:
          builder.add(kCopy, {in(at(a)), out(at(c))}, options);
          steps_.push_back([=](auto& x) { x[c] = x[a]; });
          break;
        case 2:
          builder.add(kAdd, {in(at(a)), in(at(b)), out(at(c))}, options);
          steps_.push_back([=](auto& x) { x[c] = x[a] + x[b]; });
          break;
        default:
          builder.add(kIncrement, {inout(at(a))}, options);
          steps_.push_back([=](auto& x) { x[a] += options.constants.value; });
      }
    }
    builder.derive_deps();
  }

  void apply(std::array<uint32_t, kBuffers>& values) const {
    for (const auto& step : steps_) step(values);
  }

  PlanBuilder builder;

 private:
  std::vector<std::function<void(std::array<uint32_t, kBuffers>&)>> steps_;
};

TEST_P(Conformance, EdgesRandom) {
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    std::vector<const Allocation*> buffers;
    for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) buffers.push_back(cells());
    const RandomPlan random(seed, 40, buffers, 60);
    const auto program = device_->prepare(random.builder.plan, {});
    std::array<uint32_t, RandomPlan::kBuffers> expected{};
    for (int replay = 0; replay < 3; ++replay) {
      ASSERT_TRUE(wait(submit(*program)));
      random.apply(expected);
      for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) {
        for (const uint32_t value : contents<uint32_t>(buffers[i]))
          ASSERT_EQ(value, expected[i]) << "seed " << seed;
      }
    }
    for (const Allocation* buffer : buffers) device_->release(buffer);
  }
}

TEST_P(Conformance, EdgesReplayed) {
  std::vector<const Allocation*> buffers;
  for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) buffers.push_back(cells());
  const RandomPlan random(99, 200, buffers, 0);
  const auto program = device_->prepare(random.builder.plan, {});
  std::array<uint32_t, RandomPlan::kBuffers> expected{};
  Point last;
  for (int replay = 0; replay < 100; ++replay) {
    last = submit(*program);
    random.apply(expected);
  }
  ASSERT_TRUE(wait(last));
  for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) {
    for (const uint32_t value : contents<uint32_t>(buffers[i])) ASSERT_EQ(value, expected[i]);
  }
}

TEST_P(Conformance, Fence) {
  // No deps at all: only the fence orders the copies after the fills.
  constexpr uint32_t kWidth = 6;
  const Allocation* from = cells(kWidth);
  const Allocation* to = cells(kWidth);
  PlanBuilder builder;
  const auto cell = [](const Allocation* allocation, uint32_t i) { return view(allocation, i * 4, 4); };
  for (uint32_t i = 0; i < kWidth; ++i) {
    builder.add(kFill, {out(cell(from, i))}, {.constants = {10 + i, 300, 5 + i, 0}});
  }
  builder.fence();
  for (uint32_t i = 0; i < kWidth; ++i) {
    builder.add(kCopy, {in(cell(from, kWidth - 1 - i)), out(cell(to, i))}, {});
  }
  builder.fence();
  builder.fence();
  builder.add(kIncrement, {inout(view(to))}, {.launch = rows(kWidth), .constants = {100, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  for (int replay = 0; replay < 20; ++replay) {
    clear(*device_, from);
    ASSERT_TRUE(wait(submit(*program)));
    for (uint32_t i = 0; i < kWidth; ++i) EXPECT_EQ(contents<uint32_t>(to)[i], 100 + 10 + kWidth - 1 - i);
  }
}

TEST_P(Conformance, FenceRandom) {
  // A fence after every command makes deps unnecessary.
  std::vector<const Allocation*> buffers;
  for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) buffers.push_back(cells());
  RandomPlan random(7, 30, buffers, 30);
  PlanData fenced = random.builder.plan;
  fenced.deps.clear();
  fenced.commands.clear();
  for (PlanCommand command : random.builder.plan.commands) {
    command.deps = {};
    command.level = 0;
    fenced.commands.push_back(command);
    PlanCommand fence;
    fence.kind = CommandKind::fence;
    fenced.commands.push_back(fence);
  }
  const auto program = device_->prepare(fenced, {});
  std::array<uint32_t, RandomPlan::kBuffers> expected{};
  for (int replay = 0; replay < 5; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    random.apply(expected);
    for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) {
      for (const uint32_t value : contents<uint32_t>(buffers[i])) ASSERT_EQ(value, expected[i]);
    }
  }
}

TEST_P(Conformance, LiveCount) {
  constexpr uint32_t kCells = kRows + 1;  // blocks of three end one row behind the capacity
  const Allocation* data = cells(kCells);
  const Allocation* live = cells(1);
  for (const uint32_t rows_per_block : {1u, 3u, 8u}) {
    PlanBuilder builder;
    Launch launch = rows(kRows);
    launch.rows_per_block = rows_per_block;
    // The test kernels take a tile for a row: tiles of one block are its rows, in the last one all of them.
    launch.tiles_per_block = rows_per_block;
    builder.add(kIncrement, {inout(view(data))},
                {.launch = launch, .constants = {1, 0, 0, 0}, .live = in(view(live))});
    const auto program = device_->prepare(builder.plan, {});
    for (const uint32_t count : {0u, 1u, 3u, 4u, 7u, kRows, kRows + 1, UINT32_MAX}) {
      clear(*device_, data);
      const UpdateData update{view(live), std::as_bytes(std::span(&count, 1))};
      ASSERT_TRUE(wait(submit(*program, {&update, 1})));
      const uint32_t blocks = (std::min(count, kRows) + rows_per_block - 1) / rows_per_block;
      for (uint32_t i = 0; i < kCells; ++i) {
        EXPECT_EQ(contents<uint32_t>(data)[i], i < blocks * rows_per_block ? 1u : 0u)
            << "row " << i << " of " << count << " in blocks of " << rows_per_block;
      }
    }
  }
}

TEST_P(Conformance, LiveCountWritten) {
  // The count is made by a command, read by the next, and overwritten by a third: no late worker may read it
  // then.
  const Allocation* data = cells();
  const Allocation* live = cells(1);
  PlanBuilder builder;
  builder.add(kFill, {out(view(live))}, {.constants = {3, 20, 1, 0}});
  builder.add(kIncrement, {inout(view(data))},
              {.launch = rows(kRows), .constants = {1, 0, 0, 0}, .live = in(view(live))});
  builder.add(kFill, {out(view(live))}, {.constants = {kRows, 0, 0, 0}});
  builder.add(kIncrement, {inout(view(data))},
              {.launch = rows(kRows), .constants = {10, 0, 0, 0}, .live = in(view(live))});
  builder.add(kFill, {out(view(live))}, {});
  builder.add(kIncrement, {inout(view(data))},
              {.launch = rows(kRows), .constants = {100, 0, 0, 0}, .live = in(view(live))});
  builder.derive_deps();
  const auto program = device_->prepare(builder.plan, {});
  constexpr uint32_t kReplays = 200;
  Point last;
  for (uint32_t i = 0; i < kReplays; ++i) last = submit(*program);
  ASSERT_TRUE(wait(last));
  for (uint32_t i = 0; i < kRows; ++i) EXPECT_EQ(contents<uint32_t>(data)[i], kReplays * (i < 3 ? 11 : 10));
}

TEST_P(Conformance, ZeroTiles) {
  // Commands without rows complete, and those that depend on them run.
  const Allocation* data = cells();
  const Allocation* live = cells(1);
  PlanBuilder builder;
  const uint32_t a =
      builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .live = in(view(live))});
  const uint32_t b = builder.add(kIncrement, {inout(view(data))}, {.launch = rows(0), .deps = {a}});
  builder.add(kIncrement, {inout(view(data))},
              {.launch = rows(kRows), .constants = {1, 0, 0, 0}, .deps = {b}});
  const auto program = device_->prepare(builder.plan, {});
  for (uint32_t replay = 1; replay <= 50; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    for (const uint32_t value : contents<uint32_t>(data)) EXPECT_EQ(value, replay);
  }
}

TEST_P(Conformance, ManyTiles) {
  constexpr uint32_t kMany = 10007;
  const Allocation* data = cells(kMany);
  PlanBuilder builder;
  for (int i = 0; i < 3; ++i) {
    builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kMany), .constants = {1, 0, 0, 0}});
  }
  builder.derive_deps();
  const auto program = device_->prepare(builder.plan, {});
  for (uint32_t replay = 1; replay <= 20; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    for (const uint32_t value : contents<uint32_t>(data)) ASSERT_EQ(value, 3 * replay);
  }
}

TEST_P(Conformance, Arena) {
  constexpr size_t kArenaBytes = 4096;
  const Allocation* result = cells();
  const Allocation* arena = allocate(2 * kArenaBytes);
  PlanBuilder builder;
  builder.plan.arena_bytes = kArenaBytes;
  builder.add(kFill, {out(arena_view(0, kRowsBytes))}, {.launch = rows(kRows), .constants = {5, 0, 0, 0}});
  builder.add(kFill, {out(arena_view(1024, kRowsBytes))}, {.launch = rows(kRows), .constants = {6, 0, 0, 0}});
  builder.add(kAdd, {in(arena_view(0, kRowsBytes)), in(arena_view(1024, kRowsBytes)), out(view(result))},
              {.launch = rows(kRows)});
  builder.derive_deps();
  const auto program = device_->prepare(builder.plan, {.arena = view(arena, kArenaBytes, kArenaBytes)});
  ASSERT_TRUE(wait(submit(*program)));
  for (const uint32_t value : contents<uint32_t>(result)) EXPECT_EQ(value, 11u);
  EXPECT_EQ(contents<uint32_t>(arena)[0], 0u);
  EXPECT_EQ(contents<uint32_t>(arena)[kArenaBytes / 4], 5u);
}

TEST_P(Conformance, Updates) {
  // Each submission sees its own update, in the order of the submits.
  constexpr uint32_t kCount = 500;
  const Allocation* input = cells(1);
  const Allocation* log = cells(kCount + 1);
  PlanBuilder builder;
  builder.add(kAppend, {in(view(input)), inout(view(log))}, {});
  const auto program = device_->prepare(builder.plan, {});
  Point last;
  for (uint32_t i = 0; i < kCount; ++i) {
    uint32_t value = 1000 + i;
    const UpdateData update{view(input), std::as_bytes(std::span(&value, 1))};
    last = submit(*program, {&update, 1});
    value = 0;  // the bytes were copied
  }
  ASSERT_TRUE(wait(last));
  const auto values = contents<uint32_t>(log);
  ASSERT_EQ(values[0], kCount);
  for (uint32_t i = 0; i < kCount; ++i) ASSERT_EQ(values[1 + i], 1000 + i);
}

TEST_P(Conformance, UpdatesCopied) {
  // Several updates, overlapping: later ones win; they come before the first command.
  const Allocation* data = cells();
  const Allocation* to = cells();
  PlanBuilder builder;
  builder.add(kCopy, {in(view(data)), out(view(to))}, {.launch = rows(kRows)});
  const auto program = device_->prepare(builder.plan, {});
  std::vector<uint32_t> all(kRows, 1), part(2, 2);
  const std::array<UpdateData, 2> updates = {UpdateData{view(data), std::as_bytes(std::span(all))},
                                             UpdateData{view(data, 8, 8), std::as_bytes(std::span(part))}};
  ASSERT_TRUE(wait(submit(*program, updates)));
  const std::vector<uint32_t> expected = {1, 1, 2, 2, 1, 1, 1, 1};
  const auto found = contents<uint32_t>(to);
  EXPECT_EQ(std::vector<uint32_t>(found.begin(), found.end()), expected);
}

TEST_P(Conformance, WaitAcrossQueues) {
  const Allocation* first = cells();
  const Allocation* second = cells();
  PlanBuilder producer, consumer;
  producer.add(kIncrement, {inout(view(first))}, {.launch = rows(kRows), .constants = {1, 200, 0, 0}});
  consumer.add(kCopy, {in(view(first)), out(view(second))}, {.launch = rows(kRows)});
  const auto produce = device_->prepare(producer.plan, {.queue = 0});
  const auto consume = device_->prepare(consumer.plan, {.queue = 1});
  Point consumed;
  for (uint32_t round = 1; round <= 20; ++round) {
    const Point produced = round == 1 ? submit(*produce) : submit(*produce, {}, {&consumed, 1});
    consumed = submit(*consume, {}, {&produced, 1});
  }
  ASSERT_TRUE(wait(consumed));
  for (const uint32_t value : contents<uint32_t>(second)) EXPECT_EQ(value, 20u);
}

TEST_P(Conformance, HostPoint) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  const Point five = host_point(5);
  const Point point = submit(*program, {}, {&five, 1});
  EXPECT_FALSE(device_->wait(point, milliseconds(20)));
  device_->signal_host(4);
  EXPECT_FALSE(device_->wait(point, milliseconds(20)));
  EXPECT_EQ(device_->completed(point.queue), point.value - 1);
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(20));
    device_->signal_host(6);
  });
  EXPECT_TRUE(wait(point));
  later.join();
  EXPECT_EQ(contents<uint32_t>(data)[0], 1u);
  EXPECT_TRUE(wait(submit(*program, {}, {&five, 1}))) << "signalled before";
}

TEST_P(Conformance, HostTimeline) {
  EXPECT_EQ(device_->completed(kHostQueue), 0u);
  EXPECT_FALSE(device_->wait(host_point(1), milliseconds(5)));
  device_->signal_host(3);
  device_->signal_host(2);
  EXPECT_EQ(device_->completed(kHostQueue), 3u);
  EXPECT_TRUE(device_->wait(host_point(3), nanoseconds(0)));
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(10));
    device_->signal_host(4);
  });
  EXPECT_TRUE(wait(host_point(4)));
  later.join();
}

TEST_P(Conformance, AfterOrders) {
  const Allocation* data = cells();
  const Allocation* to = cells();
  PlanBuilder slow, reader;
  slow.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 500, 0, 0}});
  reader.add(kCopy, {in(view(data)), out(view(to))}, {.launch = rows(kRows)});
  const auto first = device_->prepare(slow.plan, {.queue = 0});
  const auto second = device_->prepare(reader.plan, {.queue = 1});
  const Point one = host_point(1);
  const Point point = submit(*first, {}, {&one, 1});
  const Point behind = device_->submit({second.get(), {}, {}, {&point, 1}});
  EXPECT_FALSE(device_->wait(behind, milliseconds(5)));
  device_->signal_host(1);
  ASSERT_TRUE(wait(behind));
  for (const uint32_t value : contents<uint32_t>(to)) EXPECT_EQ(value, 1u);
}

TEST_P(Conformance, HostEnds) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  const auto other = device_->prepare(builder.plan, {.queue = 1});
  device_->signal_host(3);
  const Point three = host_point(3), four = host_point(4);
  const Point done = submit(*program, {}, {&three, 1}), blocked = submit(*program, {}, {&four, 1});
  const Point follows = submit(*other, {}, {&blocked, 1});
  EXPECT_FALSE(device_->wait(four, milliseconds(2)));
  device_->end_host();
  device_->signal_host(9);
  EXPECT_EQ(device_->completed(kHostQueue), 3u);
  EXPECT_TRUE(wait(three));
  EXPECT_TRUE(wait(done));
  for (const Point& point : {four, blocked, follows, submit(*other, {}, {&four, 1})})
    EXPECT_THROW(device_->wait(point, kLong), DeviceError);
  EXPECT_TRUE(wait(submit(*program))) << "no queue is stopped by it";
  EXPECT_EQ(contents<uint32_t>(data)[0], 2u);
}

TEST_P(Conformance, Ids) {
  const auto other = GetParam().make();
  EXPECT_NE(device_->id, 0u);
  EXPECT_NE(device_->id, other->id);
}

TEST_P(Conformance, BlockedQueue) {
  const Allocation* data = cells();
  const Allocation* other = cells();
  PlanBuilder builder, free;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  free.add(kIncrement, {inout(view(other))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto blocked = device_->prepare(builder.plan, {.queue = 0});
  const auto running = device_->prepare(free.plan, {.queue = 1});
  const Point one = host_point(1);
  const Point head = submit(*blocked, {}, {&one, 1});
  const Point behind = submit(*blocked);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(wait(submit(*running)));
  EXPECT_FALSE(device_->wait(behind, nanoseconds(0))) << "a queue keeps its order";
  EXPECT_EQ(device_->completed(0), 0u);
  device_->signal_host(1);
  EXPECT_TRUE(wait(behind));
  EXPECT_TRUE(device_->wait(head, nanoseconds(0)));
  EXPECT_EQ(contents<uint32_t>(data)[0], 2u);
}

TEST_P(Conformance, Timeout) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(1), .constants = {1, 100000, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  const Point point = submit(*program);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(device_->wait(point, nanoseconds(0)));
  EXPECT_FALSE(device_->wait(point, nanoseconds(-5)));
  EXPECT_FALSE(device_->wait(point, milliseconds(10)));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(10));
  EXPECT_TRUE(device_->wait(point, nanoseconds::max())) << "a timeout ends nothing";
  EXPECT_EQ(contents<uint32_t>(data)[0], 1u);
}

TEST_P(Conformance, Replays) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  builder.derive_deps();
  const auto program = device_->prepare(builder.plan, {});
  for (uint32_t i = 0; i < 10000; ++i) ASSERT_TRUE(wait(submit(*program)));
  for (const uint32_t value : contents<uint32_t>(data)) EXPECT_EQ(value, 20000u);
  EXPECT_EQ(device_->completed(0), 10000u);
}

TEST_P(Conformance, ReplaysPipelined) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  Point last;
  for (uint32_t i = 0; i < 10000; ++i) last = submit(*program);
  ASSERT_TRUE(wait(last));
  for (const uint32_t value : contents<uint32_t>(data)) EXPECT_EQ(value, 10000u);
}

TEST_P(Conformance, Timestamps) {
  const Allocation* a = cells();
  const Allocation* b = cells();
  PlanBuilder builder;
  builder.add(kFill, {out(view(a))}, {.launch = rows(kRows), .constants = {1, 200, 0, 0}});
  builder.fence();
  builder.add(kCopy, {in(view(a)), out(view(b))}, {.launch = rows(kRows), .deps = {0}});
  builder.add(kIncrement, {inout(view(b))}, {.launch = rows(0), .deps = {2}});
  builder.add(kIncrement, {inout(view(b))}, {.launch = rows(kRows), .deps = {3}});
  const auto program = device_->prepare(builder.plan, {.timestamps = true});
  std::vector<TickSpan> spans(builder.plan.commands.size());
  uint64_t before = 0;
  for (int replay = 0; replay < 20; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    device_->timestamps(*program, spans);
    uint64_t last = before;
    for (const TickSpan& span : spans) {
      EXPECT_GE(span.begin, last);
      EXPECT_GE(span.ready, span.begin);
      EXPECT_GE(span.end, span.ready);
      last = span.end;
    }
    before = last;
    EXPECT_GE(static_cast<double>(spans[0].end - spans[0].begin) * device_->info.ns_per_tick, 200e3);
  }
}

TEST_P(Conformance, TimedCommandsOverlap) {
  const Allocation* word = cells(1);
  const Allocation* met = cells(2);
  PlanBuilder builder;
  for (uint32_t i = 0; i < 2; ++i) {
    builder.add(
        kMeet,
        {{view(word), Access::accumulate, false}, out(view(met, i * sizeof(uint32_t), sizeof(uint32_t)))},
        {.launch = rows(1), .constants = {i, 0, 0, 0}});
  }
  const uint32_t placement[] = {0, 1};
  for (const bool timed : {false, true}) {
    const auto program = device_->prepare(builder.plan, {.timestamps = timed, .placement = placement});
    for (int replay = 0; replay < 5; ++replay) {
      clear(*device_, word);
      ASSERT_TRUE(wait(submit(*program)));
      for (const uint32_t value : contents<uint32_t>(met)) ASSERT_EQ(value, 1u) << "each waits for the other";
      if (!timed) continue;
      std::array<TickSpan, 2> spans;
      device_->timestamps(*program, spans);
      EXPECT_LE(spans[0].begin, spans[1].end);
      EXPECT_LE(spans[1].begin, spans[0].end);
    }
  }
}

TEST_P(Conformance, WaitFromThreads) {
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 100, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  std::vector<Point> points;
  for (int i = 0; i < 20; ++i) points.push_back(submit(*program));
  std::vector<std::thread> threads;
  std::array<std::atomic<uint32_t>, 6> reached{};
  for (size_t t = 0; t < reached.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const Point& point : points) reached[t] += device_->wait(point, kLong) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& count : reached) EXPECT_EQ(count.load(), 20u);
  EXPECT_EQ(contents<uint32_t>(data)[0], 20u);
}

TEST_P(Conformance, SubmitFromThreads) {
  const uint32_t queues = device_->info.queue_count;
  constexpr uint32_t kCount = 200;
  std::vector<const Allocation*> data;
  std::vector<std::unique_ptr<PlanBuilder>> builders;
  std::vector<std::unique_ptr<Executable>> programs;
  for (uint32_t q = 0; q < queues; ++q) {
    data.push_back(cells());
    builders.push_back(std::make_unique<PlanBuilder>());
    builders[q]->add(kIncrement, {inout(view(data[q]))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
    programs.push_back(device_->prepare(builders[q]->plan, {.queue = q}));
  }
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 2 * queues; ++t) {
    threads.emplace_back([&, t] {
      Point last;
      for (uint32_t i = 0; i < kCount; ++i) last = submit(*programs[t % queues]);
      EXPECT_TRUE(device_->wait(last, kLong));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t q = 0; q < queues; ++q) EXPECT_EQ(contents<uint32_t>(data[q])[0], 2 * kCount);
}

TEST_P(Conformance, ScratchOfWorkers) {
  constexpr uint32_t kMany = 500;
  const uint32_t workers = device_->info.compute_units;
  const Allocation* data = cells(kMany);
  const Allocation* scratch = allocate(workers * sizeof(WorkerRecord));
  PlanBuilder builder;
  Launch launch = rows(kMany);
  launch.scratch_bytes = sizeof(WorkerRecord);
  builder.add(kRecord, {inout(view(data))},
              {.launch = launch, .constants = {0, 2, 0, 0}, .scratch = inout(view(scratch))});
  const auto program = device_->prepare(builder.plan, {});
  constexpr uint32_t kReplays = 5;
  for (uint32_t replay = 1; replay <= kReplays; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    uint32_t tiles = 0;
    for (const WorkerRecord& record : contents<WorkerRecord>(scratch)) {
      EXPECT_EQ(record.broken, 0u);
      EXPECT_LE(record.prologues, replay) << "once a worker and command";
      EXPECT_EQ(record.prologues > 0, record.tiles > 0);
      tiles += record.tiles;
    }
    EXPECT_EQ(tiles, replay * kMany);
    for (const uint32_t value : contents<uint32_t>(data)) ASSERT_EQ(value, replay);
  }
}

TEST_P(Conformance, Placement) {
  const uint32_t workers = device_->info.compute_units;
  constexpr uint32_t kCommands = 12;
  const Allocation* threads = allocate(kCommands * kRows * sizeof(uint64_t));
  PlanBuilder builder;
  std::vector<uint32_t> placement;
  for (uint32_t i = 0; i < kCommands; ++i) {
    builder.add(kThread, {out(view(threads, i * kRows * 8, kRows * 8))}, {.launch = rows(kRows)});
    placement.push_back((i * 5) % workers);
  }
  const auto program = device_->prepare(builder.plan, {.placement = placement});
  for (int replay = 0; replay < 10; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    const auto ran = contents<uint64_t>(threads);
    for (uint32_t i = 0; i < kCommands; ++i) {
      for (uint32_t row = 0; row < kRows; ++row) EXPECT_EQ(ran[i * kRows + row], ran[i * kRows]);
      for (uint32_t j = 0; j < i; ++j) {
        EXPECT_EQ(ran[i * kRows] == ran[j * kRows], placement[i] == placement[j]) << i << " and " << j;
      }
    }
  }
}

TEST_P(Conformance, PlacedEdges) {
  const uint32_t workers = device_->info.compute_units;
  std::vector<const Allocation*> buffers;
  for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) buffers.push_back(cells());
  const RandomPlan random(3, 60, buffers, 20);
  std::vector<uint32_t> placement;
  for (uint32_t i = 0; i < 60; ++i) placement.push_back(i % workers);
  const auto program = device_->prepare(random.builder.plan, {.placement = placement});
  std::array<uint32_t, RandomPlan::kBuffers> expected{};
  for (int replay = 0; replay < 20; ++replay) {
    ASSERT_TRUE(wait(submit(*program)));
    random.apply(expected);
    for (uint32_t i = 0; i < RandomPlan::kBuffers; ++i) {
      for (const uint32_t value : contents<uint32_t>(buffers[i])) ASSERT_EQ(value, expected[i]);
    }
  }
}

TEST_P(Conformance, Prefetch) {
  const Allocation* weight = cells();
  const Allocation* input = cells();
  const Allocation* output = cells();
  const auto run = [&](const Argument& first) {
    PlanBuilder builder;
    const uint32_t slow =
        builder.add(kIncrement, {inout(view(input))}, {.launch = rows(1), .constants = {1, 2000, 0, 0}});
    builder.add(kPrefetched, {first, out(view(output))}, {.launch = rows(kRows), .deps = {slow}});
    const auto program = device_->prepare(builder.plan, {});
    const uint32_t before = prefetch_calls();
    EXPECT_TRUE(wait(submit(*program)));
    return prefetch_calls() - before;
  };
  EXPECT_EQ(run(in(view(weight))), 0u)
      << "an argument that is not sealed may be written until the deps completed";
  uint32_t most = 0;
  for (int i = 0; i < 50; ++i) most = std::max(most, run(sealed(view(weight))));
  EXPECT_LE(most, device_->info.compute_units);
  EXPECT_EQ(most > 0, device_->info.compute_units > 1) << "a waiting worker loads what it may";
}

TEST_P(Conformance, DestroyInFlight) {
  alignas(64) static std::array<uint32_t, kRows> memory;
  memory.fill(0);
  const Allocation* data =
      device_->allocate({kRowsBytes, "outlives the device", MemoryKind::import_host, memory.data()});
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 50, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  for (int i = 0; i < 20; ++i) submit(*program);
  device_.reset();
  EXPECT_EQ(memory[0], 20u);
}

TEST_P(Conformance, DestroyBlocked) {
  // Nobody can signal the host timeline of a device that ends: those who wait hear it, and nothing hangs.
  const Allocation* data = cells();
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  const auto other = device_->prepare(builder.plan, {.queue = 1});
  const Point never = host_point(1);
  const Point blocked = submit(*program, {}, {&never, 1});
  const Point behind = submit(*other, {}, {&blocked, 1});
  Backend* device = device_.release();  // not read through the pointer that is reset
  std::atomic<int> failures{0};
  std::vector<std::thread> waiters;
  for (const Point& point : {blocked, behind, never}) {
    waiters.emplace_back([device, point, &failures] {
      try {
        device->wait(point, kLong);
      } catch (const DeviceError&) {
        ++failures;
      }
    });
  }
  std::this_thread::sleep_for(milliseconds(100));  // until all wait
  delete device;
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(failures.load(), 3);
}

INSTANTIATE_TEST_SUITE_P(Devices, Conformance, ::testing::ValuesIn(devices()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace refrain::backend::testing

// Memory that comes back when the submission that used it has completed, and memory that stays resident.
#include "refrain/device/pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <set>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/checked.h"
#include "refrain/device/residency.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

Device cpu() {
  backend::CpuOptions options;
  options.threads = 1;
  return Device(backend::make_validate(backend::make_cpu(options, kKernels)), {}, {});
}

uint64_t id(const Buffer& buffer) { return buffer.memory()->allocation().id; }

/// Runs once on all of `buffer`, after `waits`.
Point use(Device& device, const Buffer& buffer, std::vector<Point> waits = {}) {
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(buffer), Operand(), Operand(buffer)}, MixConstants{1, 4, 0, 4});
  return encoder.commit({.label = "use", .queue = 0, .waits = std::move(waits), .plan = {}});
}

TEST(Pool, MemoryComesBackWhenTheLastViewIsGone) {
  Device device = cpu();
  BufferPool pool(device);
  uint64_t first = 0;
  {
    const Buffer buffer = pool.buffer(DType::u32, {16});
    first = id(buffer);
    const Buffer view = buffer.slice(3, 4);
    EXPECT_EQ(pool.usage().out_bytes, 64u);
  }
  EXPECT_EQ(pool.usage().out_bytes, 0u);
  EXPECT_EQ(pool.usage().free_bytes, 64u);
  EXPECT_EQ(id(pool.buffer(DType::u32, {16})), first);
  EXPECT_EQ(pool.usage().reused, 1u);
  EXPECT_EQ(pool.usage().fresh, 1u);
}

TEST(Pool, ButNotWhileASubmissionUsesIt) {
  Device device = cpu();
  BufferPool pool(device);
  const Point host = device.host_point();
  uint64_t in_flight = 0;
  Point point;
  {
    const Buffer buffer = pool.buffer(DType::u32, {16});
    in_flight = id(buffer);
    point = use(device, buffer, {host});
  }
  EXPECT_EQ(pool.usage().free_bytes, 0u);
  EXPECT_NE(id(pool.buffer(DType::u32, {16})), in_flight);
  device.signal(host);
  device.wait(point, 10s);
  EXPECT_EQ(pool.usage().out_bytes, 0u);
  EXPECT_EQ(pool.usage().free_bytes, 128u);
}

TEST(Pool, NorWhileAnUpdateIsToBeWritten) {
  Device device = cpu();
  BufferPool pool(device);
  const Buffer a = device.buffer(DType::u32, {16});
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 4, 0, 4});
  const Program program = device.prepare(device.plan(encoder.finish()).first);
  const Point host = device.host_point();
  Point point;
  {
    const Buffer target = pool.buffer(DType::u32, {1});
    const uint32_t value = 1;
    const Update update{target, std::as_bytes(std::span(&value, 1))};
    point = device.submit(program, std::span(&update, 1), std::array{host});
  }
  EXPECT_EQ(pool.usage().out_bytes, 4u);
  device.signal(host);
  device.wait(point, 10s);
  EXPECT_EQ(pool.usage().out_bytes, 0u);
}

TEST(Pool, NoMemoryIsOutTwice) {
  Device device = cpu();
  BufferPool pool(device);
  std::vector<Buffer> held;
  std::mt19937 rng(1);
  for (int i = 0; i < 2000; ++i) {
    if (!held.empty() && rng() % 2 == 0) {
      if (rng() % 3 == 0) use(device, held[rng() % held.size()].slice(0, 4));
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(rng() % held.size()));
    } else {
      held.push_back(pool.buffer(DType::u32, {4 + static_cast<int64_t>(rng() % 60)}));
    }
    std::set<uint64_t> ids;
    for (const Buffer& buffer : held) ids.insert(id(buffer));
    ASSERT_EQ(ids.size(), held.size());
  }
}

TEST(Pool, LengthsAreExactAndWasteIsBounded) {
  Device device = cpu();
  BufferPool pool(device);
  { const Buffer large = pool.buffer(DType::u8, {1000}); }
  const Buffer reused = pool.buffer(DType::u8, {600});
  EXPECT_EQ(pool.usage().reused, 1u);
  EXPECT_EQ(reused.bytes(), 600u);
  EXPECT_EQ(reused.span<uint8_t>().size(), 600u);
  EXPECT_NE(refusal([&] { reused.view(DType::u8, {601}); }), "nothing was thrown");
  { const Buffer again = pool.buffer(DType::u8, {1000}); }
  const Buffer small = pool.buffer(DType::u8, {400});
  EXPECT_EQ(pool.usage().reused, 1u) << "1000 bytes would be wasted on 400";
}

TEST(Pool, ZeroedUnlessAskedOtherwise) {
  Device device = cpu();
  BufferPool zeroed(device), raw(device, {.init = PoolInit::unspecified});
  for (BufferPool* pool : {&zeroed, &raw}) {
    {
      const Buffer buffer = pool->buffer(DType::u8, {100});
      for (const uint8_t byte : buffer.span<uint8_t>()) ASSERT_EQ(byte, 0);
      for (uint8_t& byte : buffer.span<uint8_t>()) byte = 7;
    }
    const Buffer next = pool->buffer(DType::u8, {100});
    EXPECT_EQ(pool->usage().reused, 1u);
    for (const uint8_t byte : next.span<uint8_t>()) ASSERT_EQ(byte, pool == &raw ? 7 : 0);
  }
}

TEST(Pool, CapTrimAndLimit) {
  Device device = cpu();
  BufferPool pool(device, {.limit_bytes = 1000, .keep_bytes = 600});
  {
    const Buffer a = pool.buffer(DType::u8, {500}), b = pool.buffer(DType::u8, {400});
    EXPECT_EQ(refusal<DeviceError>([&] { pool.buffer(DType::u8, {101}, "c"); }),
              "[pool] c: 101 bytes wanted, 900 of at most 1000 in use");
  }
  EXPECT_LE(pool.usage().free_bytes, 600u) << "what comes back beyond the cap is released";
  EXPECT_EQ(device.memory().used_bytes, align_up(pool.usage().free_bytes, size_t{64}));
  { const Buffer c = pool.buffer(DType::u8, {990}); }
  EXPECT_EQ(pool.usage().free_bytes, 0u) << "free memory gave way to the limit, and 990 is over the cap";
  { const Buffer d = pool.buffer(DType::u8, {300}), e = pool.buffer(DType::u8, {100}); }
  pool.trim(150);
  EXPECT_EQ(pool.usage().free_bytes, 100u) << "the largest goes first";
  pool.trim();
  EXPECT_EQ(device.memory().used_bytes, 0u);
}

TEST(Pool, ThreadsShareTheLimit) {
  constexpr size_t kLimit = 256;
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  BufferPool pool(device, {.init = PoolInit::unspecified, .limit_bytes = kLimit});
  std::atomic<size_t> most{0};
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Buffer held;
      for (int64_t i = 0; i < 60000; ++i) {
        try {
          const Buffer other = pool.buffer(DType::u8, {20 + (i * 37 + t * 11) % 100});
          const PoolUsage usage = pool.usage();
          const size_t all = usage.out_bytes + usage.free_bytes;
          for (size_t seen = most; seen < all && !most.compare_exchange_weak(seen, all);) {
          }
          if (i % 3 == 0) held = other;
        } catch (const DeviceError&) {
          held = {};
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, kLimit);
  EXPECT_GT(pool.usage().reused, 0u);
}

TEST(Pool, PatienceWaitsForSubmissions) {
  Device device = cpu();
  BufferPool pool(device, {.limit_bytes = 64, .patience = 10s});
  const Point host = device.host_point();
  use(device, pool.buffer(DType::u32, {16}), {host});
  const std::jthread signaller([&] {
    std::this_thread::sleep_for(5ms);
    device.signal(host);
  });
  EXPECT_EQ(pool.buffer(DType::u32, {16}).bytes(), 64u);
  EXPECT_EQ(pool.usage().fresh, 1u);
}

TEST(Pool, PatienceMayHaveNoEnd) {
  Device device = cpu();
  BufferPool pool(device, {.limit_bytes = 128, .patience = std::chrono::nanoseconds::max()});
  const Point host = device.host_point();
  uint64_t used = 0;
  {
    const Buffer buffer = pool.buffer(DType::u32, {16});
    used = id(buffer);
    use(device, buffer, {host});
  }
  Buffer spare = pool.buffer(DType::u32, {16});
  {
    const std::jthread signaller([&](const std::stop_token& stop) {
      std::this_thread::sleep_for(5ms);
      device.signal(host);
      // Ends a wait that would have no end indeed.
      if (!test::eventually([&] { return stop.stop_requested(); })) spare = {};
    });
    EXPECT_EQ(id(pool.buffer(DType::u32, {16})), used);
  }
  BufferPool hasty(device, {.limit_bytes = 64, .patience = std::chrono::nanoseconds::min()});
  const Buffer all = hasty.buffer(DType::u32, {16});
  EXPECT_NE(refusal<DeviceError>([&] { hasty.buffer(DType::u32, {1}); }), "nothing was thrown");
}

TEST(Pool, FreeMemoryIsGivenUpBeforeTheDeviceRefuses) {
  backend::CpuOptions options;
  options.threads = 1;
  options.memory_limit_bytes = 4096;
  Device device(backend::make_validate(backend::make_cpu(options, kKernels)), {}, {});
  BufferPool pool(device);
  const Buffer held = pool.buffer(DType::u8, {64});
  { const Buffer small = pool.buffer(DType::u8, {1024}), large = pool.buffer(DType::u8, {2048}); }
  EXPECT_EQ(pool.usage().free_bytes, 3072u);
  {
    const Buffer other = pool.buffer(DType::u8, {3200});
    EXPECT_EQ(pool.usage().free_bytes, 0u);
    EXPECT_EQ(refusal<DeviceError>([&] { pool.buffer(DType::u8, {3200}, "more"); }).substr(0, 18),
              "cpu: out of memory");
    EXPECT_EQ(pool.usage().out_bytes, 3264u) << "what was refused counts nothing";
  }
  EXPECT_EQ(refusal<DeviceError>([&] { pool.buffer(DType::u8, {5000}, "too much"); }).substr(0, 18),
            "cpu: out of memory");
  EXPECT_EQ(pool.usage().fresh, 4u);
  EXPECT_EQ(pool.usage().out_bytes, 64u);
}

TEST(Pool, MemoryIsUsedOnSeveralQueuesUntilTheLastHasCompleted) {
  auto backend = std::make_shared<ControlledBackend>(kKernels);
  {
    Device device(backend, {}, {});
    BufferPool pool(device);
    std::vector<Program> programs;
    {
      const Buffer buffer = pool.buffer(DType::u32, {16});
      for (const uint32_t queue : {0u, 1u}) {
        CommandEncoder encoder = device.encoder();
        const Buffer out = device.buffer(DType::u32, {16});
        dispatch(encoder, kMix, std::array{Operand(buffer), Operand(), Operand(out)},
                 MixConstants{1, 16, 0, 16});
        encoder.commit({.label = "reads", .queue = queue, .waits = {}, .plan = {}});
      }
    }
    EXPECT_EQ(pool.usage().out_bytes, 64u);
    backend->complete(1, 1);
    pool.trim();
    EXPECT_EQ(pool.usage().out_bytes, 64u) << "the other queue still reads it";
    EXPECT_EQ(pool.usage().free_bytes, 0u);
    const Buffer other = pool.buffer(DType::u32, {16});
    EXPECT_EQ(pool.usage().fresh, 2u);
    backend->complete(0, 1);
    EXPECT_EQ(pool.usage().out_bytes, 64u);
    EXPECT_EQ(pool.usage().free_bytes, 64u);
  }
}

TEST(Pool, BuffersMayOutliveThePoolAndTheDevice) {
  auto backend = std::make_shared<ControlledBackend>(kKernels);
  const std::weak_ptr<ControlledBackend> watched = backend;
  Buffer buffer;
  {
    Device device(std::move(backend), {}, {});
    {
      BufferPool pool(device), copy = pool;
      buffer = copy.buffer(DType::u32, {16}, "kept");
      { const Buffer freed = pool.buffer(DType::u32, {64}); }
      EXPECT_EQ(watched.lock()->live_allocations(), 2u);
    }
    EXPECT_EQ(watched.lock()->live_allocations(), 2u) << "what is out holds the pool, and so what is free";
  }
  ASSERT_FALSE(watched.expired());
  for (const uint32_t value : buffer.span<uint32_t>()) EXPECT_EQ(value, 0u);
  for (uint32_t& value : buffer.span<uint32_t>()) value = 7;
  Buffer part = buffer.slice(3, 4);
  buffer = {};
  ASSERT_FALSE(watched.expired());
  for (const uint32_t value : part.span<const uint32_t>()) EXPECT_EQ(value, 7u);
  part = {};
  EXPECT_TRUE(watched.expired())
      << "with the last view all of it goes, and the backend sees that none is left";
}

TEST(Pool, ManyThreadsShareOne) {
  Device device = cpu();
  BufferPool pool(device);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const Buffer buffer = pool.buffer(DType::u32, {16});
        for (uint32_t& value : buffer.span<uint32_t>()) value = t;
        for (const uint32_t value : buffer.span<uint32_t>()) ASSERT_EQ(value, t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.usage().out_bytes, 0u);
}

TEST(Pool, Misuse) {
  Device device = cpu();
  BufferPool pool(device);
  EXPECT_EQ(refusal([&] { pool.buffer(DType::f32, {0}, "x"); }),
            "[pool] x: expected elements of a known size, got f32 [0]");
  EXPECT_EQ(refusal([&] { pool.buffer(DType::activation, {1}, "x"); }),
            "[pool] x: expected elements of a known size, got activation [1]");
}

TEST(Pool, ZeroingThatIsRefusedGivesTheMemoryBack) {
  const auto backend = std::make_shared<ControlledBackend>(kKernels, false);
  Device far(backend, {}, {});
  BufferPool pool(far);
  pool.buffer(DType::u8, {300});
  backend->refuse_writes(true);
  EXPECT_EQ(refusal<DeviceError>([&] { pool.buffer(DType::u8, {300}); }), "controlled: no staging");
  EXPECT_EQ(pool.usage().out_bytes, 0u);
  EXPECT_EQ(pool.usage().free_bytes, 300u);
  backend->refuse_writes(false);
  EXPECT_EQ(pool.buffer(DType::u8, {300}).bytes(), 300u);
  EXPECT_EQ(pool.usage().reused, 2u);
}

constexpr int64_t kLarge = int64_t{4} << 20;

TEST(Residency, IsStagedAndAppliedOnceASubmission) {
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge}), other = device.buffer(DType::u32, {16});
  const size_t before = device.memory().resident_bytes;
  ResidencySet set(device, {.lock = false});
  EXPECT_FALSE(set.staged());
  set.add(large);
  set.add(large);
  EXPECT_EQ(set.size(), 1u);
  EXPECT_EQ(set.bytes(), static_cast<size_t>(kLarge));
  EXPECT_TRUE(set.staged());
  EXPECT_EQ(device.memory().resident_bytes, before) << "staged, no more";
  device.wait(use(device, other), 10s);
  EXPECT_FALSE(set.staged());
  EXPECT_GE(device.memory().resident_bytes, before + static_cast<size_t>(kLarge)) << "its pages are there";
}

TEST(Residency, LocksWithinTheLimitUntilRemovedAndCompleted) {
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge}), used = device.buffer(DType::u32, {16});
  ResidencySet set(device);
  set.add(large);
  set.flush();
  const size_t locked = device.memory().locked_bytes;
  EXPECT_GE(locked, std::min<size_t>(limit.rlim_cur, static_cast<size_t>(kLarge)) / 2);
  EXPECT_LE(locked, static_cast<size_t>(kLarge));
  EXPECT_GE(device.memory().resident_bytes, locked);

  const Point host = device.host_point();
  const Point point = use(device, used, {host});
  set.remove(large);
  EXPECT_FALSE(set.contains(large));
  set.flush();
  EXPECT_EQ(device.memory().locked_bytes, locked) << "a submission is in flight";
  EXPECT_TRUE(set.staged());
  device.signal(host);
  device.wait(point, 10s);
  set.flush();
  EXPECT_EQ(device.memory().locked_bytes, 0u);
  EXPECT_FALSE(set.staged());
}

TEST(Residency, ARemovalAndAnAdditionCancel) {
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge});
  ResidencySet set(device);
  set.add(large);
  set.remove(large);
  set.flush();
  EXPECT_EQ(device.memory().locked_bytes, 0u);
  EXPECT_FALSE(set.staged());
  set.add(large);
  set.flush();
  const size_t locked = device.memory().locked_bytes;
  set.remove(large);
  set.add(large);
  set.flush();
  EXPECT_EQ(device.memory().locked_bytes, locked);
  EXPECT_TRUE(set.contains(large));
}

TEST(Residency, MemoryThatIsGivenOutAgainIsAnother) {
  Device device = cpu();
  BufferPool pool(device);
  ResidencySet set(device);
  uint64_t id = 0;
  {
    const Buffer buffer = pool.buffer(DType::u8, {4096});
    id = buffer.memory()->allocation().id;
    set.add(buffer);
    EXPECT_TRUE(set.contains(buffer));
  }
  const Buffer again = pool.buffer(DType::u8, {4096});
  ASSERT_EQ(again.memory()->allocation().id, id);
  EXPECT_FALSE(set.contains(again));
  EXPECT_EQ(refusal([&] { set.remove(again); }), "[residency] remove: expected a view that was added");
  set.add(again);
  EXPECT_TRUE(set.contains(again));
  set.remove(again);
}

TEST(Residency, PartsAreLockedAndUnlockedApart) {
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge});
  const int64_t part = kLarge / 8;
  ResidencySet set(device);
  for (int64_t i = 0; i < 3; ++i) set.add(large.slice(i * part, part));
  set.flush();
  const auto locked = [&] { return device.memory().locked_bytes; };
  EXPECT_EQ(locked(), static_cast<size_t>(3 * part));
  set.remove(large.slice(part, part));
  set.flush();
  EXPECT_EQ(locked(), static_cast<size_t>(2 * part));
  set.add(large);
  set.flush();
  EXPECT_EQ(locked(), static_cast<size_t>(kLarge)) << "what was locked counts once";
}

TEST(Residency, WhatTwoViewsHoldIsHeldUntilBothAreGone) {
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge});
  const int64_t part = kLarge / 8;
  const auto locked = [&] { return device.memory().locked_bytes; };
  ResidencySet set(device);
  set.add(large);
  set.add(large.slice(0, part));
  set.flush();
  EXPECT_EQ(locked(), static_cast<size_t>(kLarge));
  set.remove(large.slice(0, part));
  set.flush();
  EXPECT_EQ(locked(), static_cast<size_t>(kLarge)) << "the whole still holds it";
  // Neighbours share a page; and what comes and what goes is applied at once.
  set.add(large.slice(0, part + 1));
  set.add(large.slice(part + 1, part));
  set.remove(large);
  set.flush();
  const size_t both = locked();
  EXPECT_GE(both, static_cast<size_t>(2 * part - 2 * 4096));
  EXPECT_LE(both, static_cast<size_t>(2 * part + 4096));
  set.remove(large.slice(0, part + 1));
  set.flush();
  EXPECT_GE(locked(), static_cast<size_t>(part - 2 * 4096));
  set.remove(large.slice(part + 1, part));
  set.flush();
  EXPECT_EQ(locked(), 0u);
}

TEST(Residency, WhatGoesMakesRoomForWhatComes) {
  auto backend = std::make_shared<ControlledBackend>(kKernels);
  Device device(backend, {}, {});
  const Buffer a = device.buffer(DType::u8, {64}), b = device.buffer(DType::u8, {64});
  ResidencySet set(device);
  set.add(a);
  set.flush();
  set.remove(a);
  set.add(b);
  backend->advised.clear();
  set.flush();
  ASSERT_EQ(backend->advised.size(), 2u);
  EXPECT_EQ(backend->advised[0].first, backend::Advice::evictable) << "first: there may be a limit";
  EXPECT_EQ(backend->advised[1].first, backend::Advice::resident);
}

TEST(Residency, ARemovalWaitsForEveryQueueThatHadWork) {
  auto backend = std::make_shared<ControlledBackend>(kKernels);
  Device device(backend, {}, {});
  const Buffer held = device.buffer(DType::u8, {64});
  ResidencySet set(device);
  set.add(held);
  set.flush();
  std::vector<Buffer> used;
  for (const uint32_t queue : {0u, 1u}) {
    CommandEncoder encoder = device.encoder();
    used.push_back(device.buffer(DType::u32, {16}));
    dispatch(encoder, kMix, std::array{Operand(used.back()), Operand(), Operand(used.back())},
             MixConstants{1, 16, 0, 16});
    encoder.commit({.label = "use", .queue = queue, .waits = {}, .plan = {}});
  }
  set.remove(held);
  EXPECT_EQ(refusal([&] { set.remove(held); }), "[residency] remove: expected a view that was added");
  set.flush();
  backend->complete(0, 1);
  set.flush();
  EXPECT_EQ(backend->advised.size(), 1u) << "queue 1 has not completed";
  EXPECT_EQ(set.size(), 0u);
  backend->complete(1, 1);
  set.flush();
  ASSERT_EQ(backend->advised.size(), 2u);
  EXPECT_EQ(backend->advised[1].first, backend::Advice::evictable);
  EXPECT_FALSE(set.staged());
}

TEST(Residency, ReleasedMemoryLeavesByItself) {
  Device device = cpu();
  ResidencySet set(device);
  {
    const Buffer large = device.buffer(DType::u8, {kLarge});
    set.add(large);
    set.flush();
    EXPECT_GT(device.memory().locked_bytes, 0u);
  }
  EXPECT_EQ(device.memory().locked_bytes, 0u);
  EXPECT_EQ(set.size(), 0u);
  set.flush();
  EXPECT_FALSE(set.staged());
}

TEST(Residency, DroppingTheSetRemovesWhatItHolds) {
  Device device = cpu();
  const Buffer large = device.buffer(DType::u8, {kLarge}), used = device.buffer(DType::u32, {16});
  {
    ResidencySet set(device);
    set.add(large);
    set.flush();
    EXPECT_GT(device.memory().locked_bytes, 0u);
  }
  EXPECT_GT(device.memory().locked_bytes, 0u) << "until a submission comes by";
  device.wait(use(device, used), 10s);
  EXPECT_EQ(device.memory().locked_bytes, 0u);
}

TEST(Residency, Misuse) {
  Device device = cpu(), other = cpu();
  const Buffer own = device.buffer(DType::u8, {8}), foreign = other.buffer(DType::u8, {8});
  ResidencySet set(device);
  EXPECT_EQ(refusal([&] { set.add(foreign); }),
            "[residency] expected memory of this device, got another device's");
  EXPECT_EQ(refusal([&] { set.remove(own); }), "[residency] remove: expected a view that was added");
  set.add(own);
  EXPECT_EQ(refusal([&] { set.remove(own.slice(0, 4)); }),
            "[residency] remove: expected a view that was added");
  EXPECT_EQ(refusal([&] { set.add(Buffer()); }), "[buffer] device_view: expected a buffer, got none");
  EXPECT_EQ(refusal([&] { set.add(Weight()); }), "[residency] weight: expected a packed weight, got none");
  ResidencySet taken = std::move(set);
  EXPECT_EQ(refusal([&] { set.add(own); }),
            "[residency] expected a set, got one that was moved from");  // NOLINT
  EXPECT_TRUE(taken.contains(own));
}

}  // namespace
}  // namespace refrain::null_tests

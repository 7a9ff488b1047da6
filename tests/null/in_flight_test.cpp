// What is in flight: how much may be, what the host may touch meanwhile, and how failures are counted.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "refrain/device/executor.h"
#include "refrain/device/session.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

DeviceOptions limited(uint32_t limit, std::chrono::nanoseconds patience) {
  DeviceOptions options;
  options.in_flight_limit = limit;
  options.patience = patience;
  return options;
}

class InFlight : public testing::Test {
 protected:
  /// from -> to.
  static ComputeGraph record(Device& device, const Buffer& from, const Buffer& to, const std::string& label) {
    CommandEncoder encoder = device.encoder();
    dispatch(encoder, kMix, std::array{Operand(from), Operand(), Operand(to)}, MixConstants{1, 16, 0, 16});
    return encoder.finish(label);
  }
  static Program program(Device& device, const Buffer& from, const Buffer& to,
                         const std::string& label = "step", uint32_t queue = 0) {
    return device.prepare(device.plan(record(device, from, to, label)).first, {.queue = queue, .arena = {}});
  }
  static Program program(Device& device, const std::string& label = "step", uint32_t queue = 0) {
    return program(device, device.buffer(DType::u32, {16}), device.buffer(DType::u32, {16}), label, queue);
  }

  /// A thread that does `act` as soon as somebody waits. It ends with its object, whatever has happened.
  std::jthread once_waited_for(std::function<void()> act) {
    return std::jthread([this, act = std::move(act)](const std::stop_token& stop) {
      if (test::eventually([&] { return backend_->waiters() != 0; }, stop)) act();
    });
  }

  std::shared_ptr<ControlledBackend> backend_ = std::make_shared<ControlledBackend>(kKernels);
};

TEST_F(InFlight, AFullQueueThrowsWhenNothingCompletes) {
  Device device(backend_, {}, limited(3, 2ms));
  const Program made = program(device);
  for (int i = 0; i < 3; ++i) device.submit(made);
  const Counters before = device.counters();
  EXPECT_EQ(refusal<TimeoutError>([&] { device.submit(made); }),
            "[submit] queue 0: 3 submissions are in flight, as many as in_flight_limit allows, and no place "
            "came free within 2 ms; the oldest is submission 1 of queue 0 'step'");
  EXPECT_EQ(device.counters().submissions, before.submissions);
  EXPECT_EQ(device.counters().throttled, before.throttled + 1);
  EXPECT_EQ(device.counters().timeouts, before.timeouts);
  EXPECT_EQ(device.submit(program(device, "other", 1)).value, 1u) << "the other queue has places";
  backend_->complete(0, 1);
  EXPECT_EQ(device.submit(made).value, 4u);
  backend_->complete(0, 4);
}

TEST_F(InFlight, AFullQueueSaysWhatItWaitsFor) {
  Device device(backend_, {}, limited(2, 1ms));
  const Program made = program(device), other = program(device, "other", 1);
  const Point host = device.host_point(), later = device.host_point();
  const Point blocked = device.submit(other, {}, std::array{host, later});
  device.submit(made, {}, std::array{blocked});
  device.submit(made);
  // Nobody but this thread could signal, so it must get out.
  const std::string full = refusal<TimeoutError>([&] { device.submit(made); });
  EXPECT_EQ(
      full.substr(full.find(';')),
      "; the oldest is submission 1 of queue 0 'step', which waits for submission 1 of queue 1 'other', "
      "which waits for host point 2, which nobody has signalled");
  device.signal(later);
  const std::string working = refusal<TimeoutError>([&] { device.submit(made); });
  EXPECT_EQ(
      working.substr(working.find(';')),
      "; the oldest is submission 1 of queue 0 'step', which waits for submission 1 of queue 1 'other'");
  EXPECT_EQ(device.counters().submissions, 3u);
}

TEST_F(InFlight, AFullQueueWaitsForTheOldest) {
  Device device(backend_, {}, limited(1, 20s));
  const Program made = program(device);
  device.submit(made);
  {
    const std::jthread device_at_work = once_waited_for([&] { backend_->complete(0, 1); });
    EXPECT_EQ(device.submit(made).value, 2u);
  }
  EXPECT_EQ(device.counters().throttled, 1u);
  {
    const std::jthread failing = once_waited_for([&] { backend_->fail(0, 2); });
    EXPECT_EQ(device.submit(made).value, 3u) << "what has failed has ended";
  }
  EXPECT_EQ(device.counters().failures, 1u);
  {
    const std::jthread losing = once_waited_for([&] { backend_->lose(); });
    EXPECT_EQ(refusal<DeviceLost>([&] { device.submit(made); }), "controlled: lost");
  }
}

// A place that came free may be taken by another before who waited for it has it: patience goes on from where it was.
TEST_F(InFlight, PatienceIsOneForAllPlacesLost) {
  bool taken = false;  // looked at until the device is gone
  Device device(backend_, {}, limited(1, 20s));
  const Program made = program(device);
  device.submit(made);
  backend_->at_wait = [&](const backend::Point& point) {
    std::this_thread::sleep_for(15ms);
    backend_->complete(0, point.value);
    taken = point.value < 3;
  };
  backend_->before_completed = [&] {
    if (std::exchange(taken, false)) device.submit(made);
  };
  EXPECT_EQ(device.submit(made).value, 4u);
  ASSERT_EQ(backend_->timeouts.size(), 3u);
  for (const uint64_t i : {0u, 1u, 2u}) {
    EXPECT_EQ(backend_->timeouts[i].first.value, i + 1);
    EXPECT_LE(backend_->timeouts[i].second, 20s - i * 15ms);
  }
  EXPECT_EQ(device.counters().throttled, 3u);
  backend_->complete(0, 4);
}

TEST_F(InFlight, AFullQueueLosesNoRecording) {
  Device device(backend_, {}, limited(1, 1ms));
  const Buffer a = device.buffer(DType::u32, {16});
  device.submit(program(device));
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  EXPECT_NE(refusal<TimeoutError>([&] { encoder.commit(); }), "nothing was thrown");
  backend_->complete(0, 1);
  EXPECT_EQ(encoder.commit().value, 2u);
  backend_->complete(0, 2);
}

// A place that is found is kept, whatever is submitted while the recording is planned and prepared.
TEST_F(InFlight, ACommitKeepsItsPlace) {
  Device device(backend_, {}, limited(1, 1ms));
  const Buffer a = device.buffer(DType::u32, {16});
  const Program made = program(device);
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  backend_->at_prepare = [&] { device.submit(made); };
  EXPECT_EQ(encoder.commit().value, 2u);
  EXPECT_NE(refusal<TimeoutError>([&] { device.submit(made); }), "nothing was thrown");
  backend_->complete(0, 1);
  EXPECT_NE(refusal<TimeoutError>([&] { device.submit(made); }), "nothing was thrown") << "one is too many";
  backend_->complete(0, 2);
  EXPECT_EQ(device.submit(made).value, 3u);
  backend_->complete(0, 3);
}

TEST_F(InFlight, BothPartsOfASplitHaveOnePlace) {
  Device device(backend_, {}, limited(1, 1ms));
  const Buffer a = device.buffer(DType::u32, {16});
  CommandEncoder encoder = device.encoder();
  for (int i = 0; i < 200; ++i) {
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  }
  ExecuteOptions options;
  options.split = true;
  const Report report = execute(encoder, options);
  EXPECT_EQ(report.parts.size(), 2u);
  EXPECT_EQ(report.point.value, 2u) << "not the first alone";
  backend_->complete(0, 2);
}

TEST_F(InFlight, AFullQueueLosesNoStageAndNoSession) {
  Device device(backend_, {}, limited(1, 1ms));
  const Buffer a = device.buffer(DType::u32, {16});
  const auto record_to = [&](CommandEncoder& encoder) {
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  };
  device.submit(program(device));
  EncoderSession stages(device);
  record_to(stages.begin_stage("stage"));
  EXPECT_NE(refusal<TimeoutError>([&] { stages.commit_stage(); }), "nothing was thrown");
  CommandEncoder encoder = device.encoder();
  record_to(encoder);
  EXPECT_NE(refusal<TimeoutError>([&] { execute(encoder); }), "nothing was thrown");
  backend_->complete(0, 1);
  EXPECT_EQ(stages.commit_stage().value, 2u);
  backend_->complete(0, 2);
  EXPECT_EQ(execute(encoder).point.value, 3u);
  backend_->complete(0, 3);
}

TEST_F(InFlight, ARefusedSubmissionLeavesNoTrace) {
  Device device(backend_, {}, {});
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  device.submit(program(device, a, b));
  const Program other = program(device, b, a, "other", 1);
  const Counters before = device.counters();
  const uint32_t value = 1;
  const Buffer elsewhere = device.buffer(DType::u32, {1});
  const Update update{elsewhere, std::as_bytes(std::span(&value, 1))};
  backend_->refuse_next_submit();
  EXPECT_EQ(refusal<DeviceError>([&] { device.submit(other, std::span(&update, 1)); }),
            "controlled: refused");
  EXPECT_EQ(device.counters().waits_derived, before.waits_derived);
  EXPECT_EQ(device.counters().updates, before.updates);
  EXPECT_EQ(elsewhere.span<uint32_t>().size(), 1u);
  EXPECT_EQ(elsewhere.memory().use_count(), 2) << "here and in the update";
  backend_->complete(0, 1);
  EXPECT_EQ(a.span<uint32_t>().size(), 16u);
}

// A queue whose backend takes its time holds up nobody but those who have to come after it.
TEST_F(InFlight, QueuesAreSubmittedToApart) {
  for (const bool refused : {false, true}) {
    backend_ = std::make_shared<ControlledBackend>(kKernels);
    Device device(backend_, {}, {});
    const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
    const Program slow = program(device, a, b, "slow", 0), follows = program(device, b, a, "follows", 1),
                  apart = program(device, "apart", 1);
    std::atomic<bool> inside{false}, go{false}, followed{false};
    backend_->at_submit = [&](uint32_t queue) {
      if (queue != 0) return;
      inside = true;
      test::eventually([&] { return go.load(); });
      if (refused) throw DeviceError("controlled: too late");
    };
    std::jthread first([&] {
      EXPECT_EQ(refusal<DeviceError>([&] { device.submit(slow); }),
                refused ? "controlled: too late" : "nothing was thrown");
    });
    test::eventually([&] { return inside.load(); });
    EXPECT_EQ(device.submit(apart).value, 1u) << "while the other is being submitted";
    EXPECT_NE(refusal([&] { (void)b.span<uint32_t>(); }), "nothing was thrown") << "it may run already";
    std::jthread second([&] {
      device.submit(follows);
      followed = true;
    });
    std::this_thread::sleep_for(5ms);
    EXPECT_FALSE(followed) << "what it comes after has no point yet";
    go = true;
    first.join();
    second.join();
    ASSERT_EQ(backend_->after.size(), refused ? 0u : 1u);
    if (!refused) {
      EXPECT_EQ(backend_->after[0].value, 1u);
    }
    EXPECT_EQ(device.counters().submissions, refused ? 2u : 3u);
    for (const uint32_t queue : {0u, 1u}) backend_->complete(queue, queue == 0 && refused ? 0 : 1 + queue);
  }
}

TEST_F(InFlight, NoBound) {
  Device device(backend_, {}, limited(0, 1ms));
  const Program made = program(device);
  for (int i = 0; i < 5000; ++i) device.submit(made);
  EXPECT_EQ(device.counters().throttled, 0u);
  backend_->complete(0, 5000);
}

TEST_F(InFlight, ThreadsShareTheLimit) {
  Device device(backend_, {}, limited(4, 20s));
  const Program programs[] = {program(device), program(device), program(device)};
  constexpr uint64_t kEach = 300;
  std::vector<std::thread> threads;
  for (const Program& made : programs) {
    threads.emplace_back([&device, &made] {
      for (uint64_t i = 0; i < kEach; ++i) device.submit(made);
    });
  }
  uint64_t most = 0;
  for (uint64_t done = 0; done < 3 * kEach;) {
    const uint64_t submitted = device.counters().submissions;
    most = std::max(most, submitted - done);
    if (done < submitted) backend_->complete(0, ++done);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 4u);
  EXPECT_EQ(device.counters().submissions, 3 * kEach);
}

TEST_F(InFlight, ASpanOfWhatIsInFlightIsRefused) {
  Device device(backend_, {}, {});
  const Buffer in = device.buffer(DType::u32, {16}, "in"), out = device.buffer(DType::u32, {16}, "out");
  const Buffer free = device.buffer(DType::u32, {16}, "free");
  const Program made = program(device, in, out.slice(0, 16));
  EXPECT_EQ(out.span<uint32_t>().size(), 16u) << "recorded and prepared is not submitted";
  device.submit(made);
  const std::string rest =
      " by submission 1 of queue 0 'step', which is in flight: wait for it, or synchronize";
  EXPECT_EQ(refusal([&] { (void)out.span<uint32_t>(); }), "[buffer] span: 'out' is used" + rest);
  EXPECT_EQ(refusal([&] { (void)out.span<const uint32_t>(); }), "[buffer] span: 'out' is written" + rest);
  EXPECT_EQ(refusal([&] { (void)out.host_span(); }), "[buffer] span: 'out' is used" + rest);
  EXPECT_EQ(refusal([&] { (void)in.span<uint32_t>(); }), "[buffer] span: 'in' is used" + rest);
  EXPECT_EQ(in.span<const uint32_t>().size(), 16u) << "both read";
  EXPECT_EQ(free.span<uint32_t>().size(), 16u);
  backend_->complete(0, 1);
  EXPECT_EQ(out.span<uint32_t>().size(), 16u);
  EXPECT_EQ(in.host_span().size(), 64u);
}

TEST_F(InFlight, ASpanOfOtherBytesIsNot) {
  Device device(backend_, {}, {});
  const Buffer memory = device.buffer(DType::u32, {64}, "memory"), in = device.buffer(DType::u32, {16});
  const Program made = program(device, in, memory.slice(16, 16), "", 1);
  const uint32_t value = 1;
  const Update update{memory.slice(40, 1), std::as_bytes(std::span(&value, 1))};
  device.submit(made);
  device.submit(made, std::span(&update, 1));
  const auto spans = [&](int64_t first, int64_t count) {
    return refusal([&] { (void)memory.slice(first, count).span<const uint32_t>(); }).substr(0, 56);
  };
  EXPECT_EQ(spans(0, 16), "nothing was thrown");
  EXPECT_EQ(spans(32, 8), "nothing was thrown");
  EXPECT_EQ(spans(41, 23), "nothing was thrown");
  EXPECT_EQ(spans(20, 0), "nothing was thrown") << "no bytes";
  device.synchronize(memory.slice(32, 8), 0ns);
  EXPECT_EQ(spans(31, 1), "[buffer] span: 'memory' is written by submission 2 of qu");
  EXPECT_EQ(spans(40, 1), "[buffer] span: 'memory' is written by submission 2 of qu");
  EXPECT_EQ(spans(0, 64), "[buffer] span: 'memory' is written by submission 2 of qu");
  backend_->complete(1, 2);
  EXPECT_EQ(spans(0, 64), "nothing was thrown");
}

TEST_F(InFlight, WhatHasEndedOnOneQueueIsFreeWhileAnotherRuns) {
  Device device(backend_, {}, {});
  const Buffer in = device.buffer(DType::u32, {16}), out = device.buffer(DType::u32, {16});
  const Program made = program(device, in, out), other = program(device, "other", 1);
  for (int i = 0; i < 2; ++i) device.submit(made);
  device.submit(other);
  backend_->complete(0, 1);
  EXPECT_NE(refusal([&] { (void)out.span<uint32_t>(); }), "nothing was thrown")
      << "the second still writes it";
  backend_->complete(0, 2);
  EXPECT_EQ(out.span<uint32_t>().size(), 16u);
  device.synchronize(out, 0ns);
  backend_->complete(1, 1);
}

TEST_F(InFlight, SynchronizeMakesASpanPossible) {
  Device device(backend_, {}, {});
  const Buffer in = device.buffer(DType::u32, {16}), out = device.buffer(DType::u32, {16});
  device.submit(program(device, in, out));
  const std::jthread at_work = once_waited_for([&] { backend_->complete(0, 1); });
  device.synchronize(out);
  EXPECT_EQ(out.span<uint32_t>().size(), 16u);
}

TEST_F(InFlight, AnUpdateOfTheArenaIsRefused) {
  Device device(backend_, {}, {});
  const Buffer arena = device.buffer(DType::u8, {256}), a = device.buffer(DType::u32, {16});
  CommandEncoder encoder = device.encoder();
  const Temp t = encoder.temp(DType::u32, {16});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(t)}, MixConstants{1, 16, 0, 16});
  dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  const Program made =
      device.prepare(device.plan(encoder.finish()).first, {.queue = 0, .arena = arena.slice(64, 128)});
  const uint32_t value = 1;
  const auto submit = [&](int64_t at) {
    const Update update{arena.slice(at, 4), std::as_bytes(std::span(&value, 1))};
    return refusal([&] { device.submit(made, std::span(&update, 1)); });
  };
  const std::string inside = "[submit] update 0: expected memory outside of the program's arena";
  EXPECT_EQ(submit(60), "nothing was thrown");
  EXPECT_EQ(submit(61), inside);
  EXPECT_EQ(submit(64), inside);
  EXPECT_EQ(submit(191), inside);
  EXPECT_EQ(submit(192), "nothing was thrown");
  backend_->complete(0, 2);
}

TEST_F(InFlight, FailuresAreCountedOnceEach) {
  std::vector<std::string> told;
  DeviceOptions options = limited(0, 1ms);
  options.log = [&](LogLevel, std::string_view message) { told.emplace_back(message); };
  Device device(backend_, {}, options);
  const Program made = program(device);
  constexpr uint64_t kCount = 3000;  // more than are remembered
  std::vector<Point> points;
  for (uint64_t i = 0; i < kCount; ++i) points.push_back(device.submit(made));
  backend_->fail(0, 2);
  for (int round = 0; round < 2; ++round) {
    device.wait(points[0]);
    for (uint64_t i = 1; i < kCount; ++i)
      EXPECT_NE(refusal<DeviceError>([&] { device.wait(points[i]); }), "nothing was thrown");
    EXPECT_EQ(device.counters().failures, kCount - 1);
    EXPECT_EQ(told.size(), kCount - 1);
    if (round == 0) device.submit(made);  // lets go of them
  }
  EXPECT_EQ(told[1], "[submission] 'step', 3 of queue 0: controlled: submission failed");
  // The latest are remembered in words, of the others that they failed.
  const auto said = [&](const Point& point) { return refusal<DeviceError>([&] { device.wait(point); }); };
  EXPECT_EQ(said(points.back()), "[submission] 'step', 3000 of queue 0: controlled: submission failed");
  EXPECT_EQ(said(points[1]), "[submission] 2 of queue 0: failed, before 1024 others");
}

// A wait that meets the failure while another thread lets go of the submission still names it.
TEST_F(InFlight, TheFirstToSeeAFailureNamesIt) {
  std::atomic<bool> looking{false};  // set until the device is gone
  Device device(backend_, {}, {});
  const Program made = program(device), other = program(device, "other", 1);
  const Point point = device.submit(made);
  backend_->fail(0, 1);
  backend_->at_poll = [&] {
    looking = true;
    std::this_thread::sleep_for(20ms);  // the wait below comes in between
  };
  std::jthread submits([&] { device.submit(other); });
  test::eventually([&] { return looking.load(); });
  EXPECT_EQ(refusal<DeviceError>([&] { device.wait(point, 10s); }),
            "[submission] 'step', 1 of queue 0: controlled: submission failed");
  submits.join();
  EXPECT_EQ(device.counters().failures, 1u);
}

TEST_F(InFlight, MemoryOfALostDeviceIsNotAskedFor) {
  Device device(backend_, {}, {});
  const Buffer in = device.buffer(DType::u32, {16}), out = device.buffer(DType::u32, {16}, "out");
  const Point point = device.submit(program(device, in, out));
  backend_->lose();
  EXPECT_EQ(refusal<DeviceLost>([&] { device.wait(point, 10s); }), "[submission] 'step': controlled: lost");
  EXPECT_EQ(refusal<DeviceLost>([&] { (void)device.memory(); }), "controlled: lost");
  EXPECT_EQ(in.span<uint32_t>().size(), 16u) << "nothing is in flight any more";
  EXPECT_EQ(refusal<DeviceError>([&] { (void)out.span<uint32_t>(); }),
            "[buffer] span: 'out' is undefined: [submission] 'step', 1 of queue 0: controlled: lost");
}

}  // namespace
}  // namespace refrain::null_tests

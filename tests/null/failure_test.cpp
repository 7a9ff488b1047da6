// What a failure leaves: bytes that are undefined until they are written whole, whoever reads them, on
// whichever queue, whether the failure was known by then or not; queues that go on, and one that is recovered.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/executor.h"
#include "refrain/device/pool.h"
#include "refrain/device/session.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

// Throws and writes nothing of its output.
constexpr OpSchema kBoom{"boom", kMixArgs, sizeof(MixConstants), check_dtypes};
void explode(const TileArgs&, uint32_t, uint32_t) { throw std::runtime_error("exploded"); }

// As mix, and counts how often it has run.
std::atomic<int> runs{0};
constexpr OpSchema kCounted{"counted", kMixArgs, sizeof(MixConstants), check_dtypes};
void run_counted(const TileArgs& args, uint32_t begin, uint32_t end) {
  ++runs;
  run_mix(args, begin, end);
}

const std::string kBad = "[submission] 'bad', 1 of queue 0: cpu: command 0 (boom) 'bad' threw: exploded";

class Failure : public testing::Test {
 protected:
  Failure() {
    device_.kernels().add({.name = "boom", .op = &kBoom, .entry = {nullptr, nullptr, explode}});
    device_.kernels().add({.name = "counted", .op = &kCounted, .entry = {nullptr, nullptr, run_counted}});
    for (const Buffer& buffer : {a_, b_, c_, d_}) std::ranges::fill(buffer.span<uint32_t>(), 5u);
  }
  static std::unique_ptr<backend::Backend> cpu() {
    backend::CpuOptions options;
    options.threads = 2;
    return backend::make_validate(backend::make_cpu(options, kKernels));
  }

  Program program(const OpSchema& op, const Buffer& from, const Buffer& to, uint32_t queue,
                  const std::string& label) {
    CommandEncoder encoder = device_.encoder();
    const auto elements = [](const Buffer& b) { return static_cast<uint32_t>(b.shape().elements()); };
    const MixConstants c{1, elements(from), 0, elements(to)};
    if (&op == &kUpdate) {
      dispatch(encoder, op, std::array{Operand(from), Operand(to)}, c);
    } else {
      dispatch(encoder, op, std::array{Operand(from), Operand(), Operand(to)}, c);
    }
    PrepareOptions options;
    options.queue = queue;
    options.label = label;
    return device_.prepare(device_.plan(encoder.finish(label)).first, options);
  }
  Point submit(const OpSchema& op, const Buffer& from, const Buffer& to, uint32_t queue,
               const std::string& label, std::span<const Point> waits = {}) {
    return device_.submit(program(op, from, to, queue, label), {}, waits);
  }
  /// What failed: that of queue 0 that would have written `to`, and has ended if `ended`.
  Point fail(const Buffer& to, bool ended = true) {
    const Point point = submit(kBoom, a_, to, 0, "bad", std::array{host_});
    if (ended) end();
    return point;
  }
  void end() {
    device_.signal(host_);
    test::eventually([&] {  // heard of by whoever looks
      (void)refusal<DeviceError>([&] { device_.synchronize(b_, 10s); });
      return device_.counters().failures != 0;
    });
  }
  std::string error(const Point& point) {
    return refusal<DeviceError>([&] { device_.wait(point, 10s); });
  }
  std::string span_error(const Buffer& buffer) {
    return refusal<DeviceError>([&] { (void)buffer.span<const uint32_t>(); });
  }
  static uint32_t value(uint32_t input) { return mixed(mixed(input, 0), 1); }

  Device device_{cpu(), {}, {}};
  Buffer a_ = device_.buffer(DType::u32, {16}, "a"), b_ = device_.buffer(DType::u32, {16}, "b"),
         c_ = device_.buffer(DType::u32, {16}, "c"), d_ = device_.buffer(DType::u32, {16}, "d");
  const Point host_ = device_.host_point();
  const std::string kNone = "nothing was thrown";
};

TEST_F(Failure, ReachesEveryReaderWheneverItComes) {
  for (const bool late : {false, true}) {
    SCOPED_TRACE(late ? "late" : "in flight");
    Device keep = device_;
    device_ = Device(cpu(), {}, {});
    device_.kernels().add({.name = "boom", .op = &kBoom, .entry = {nullptr, nullptr, explode}});
    for (Buffer* buffer : {&a_, &b_, &c_, &d_}) *buffer = device_.buffer(DType::u32, {16}, "memory");
    const Buffer e = device_.buffer(DType::u32, {16});
    const Point host = device_.host_point();
    const Point bad = submit(kBoom, a_, b_, 0, "bad", std::array{host});
    if (late) {
      device_.signal(host);
      EXPECT_EQ(error(bad), kBad);
    }
    const Point consumer = submit(kMix, b_, c_, 1, "consumer");
    const Point second = submit(kUpdate, c_, d_, 2, "second");
    const Point apart = submit(kMix, a_, e, 1, "apart");
    if (!late) device_.signal(host);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(error(apart), kNone) << "its queue goes on";
      EXPECT_EQ(error(bad), kBad);
      EXPECT_EQ(error(consumer),
                "[submission] 'consumer', 1 of queue 1: reads what a failure left undefined: " + kBad);
      EXPECT_EQ(error(second),
                "[submission] 'second', 1 of queue 2: reads what a failure left undefined: " + kBad);
    }
    for (const Buffer& buffer : {b_, c_, d_}) {
      EXPECT_EQ(span_error(buffer), "[buffer] span: 'memory' is undefined: " + kBad);
      EXPECT_EQ(refusal<DeviceError>([&] { (void)buffer.host_span(); }),
                "[buffer] span: 'memory' is undefined: " + kBad);
      EXPECT_EQ(refusal<DeviceError>([&] { device_.synchronize(buffer, 10s); }),
                "[synchronize] 'memory' is undefined: " + kBad);
    }
    for (const Buffer& buffer : {a_, e}) {
      EXPECT_EQ(span_error(buffer), kNone);
      device_.synchronize(buffer, 10s);
    }
    EXPECT_EQ(device_.counters().failures, 3u);
  }
}

TEST_F(Failure, CallbacksAndSessionsHearIt) {
  fail(b_);
  EncoderSession session(device_);
  CommandEncoder& stage = session.begin_stage("stage", {.queue = 1});
  dispatch(stage, kMix, std::array{Operand(b_), Operand(), Operand(c_)}, MixConstants{1, 16, 0, 16});
  const Point point = session.commit_stage();
  std::atomic<bool> called{false};
  std::string heard;
  device_.when_reached(point, [&](const std::exception_ptr& e) {
    heard = refusal<DeviceError>([&] {
      if (e != nullptr) std::rethrow_exception(e);
    });
    called = true;
  });
  test::eventually([&] { return called.load(); });
  const std::string said = "[submission] 'stage', 1 of queue 1: reads what a failure left undefined: " + kBad;
  EXPECT_EQ(heard, said);
  EXPECT_EQ(refusal<DeviceError>([&] { session.wait(10s); }), "[session] stage 'stage' failed: " + said);
}

TEST_F(Failure, EndsWhereTheBytesAreWrittenWhole) {
  fail(b_);
  const std::array<uint32_t, 8> values{};
  const Program apart = program(kMix, a_, d_, 1, "apart");
  const auto update = [&](int64_t first) {
    const Update part{b_.slice(first, 8), std::as_bytes(std::span(values))};
    device_.wait(device_.submit(apart, std::span(&part, 1)), 10s);
  };
  EXPECT_NE(error(submit(kUpdate, a_, b_, 1, "adds")), kNone) << "it reads what it writes";
  update(0);
  EXPECT_EQ(span_error(b_.slice(0, 8)), kNone);
  EXPECT_NE(span_error(b_.slice(7, 2)), kNone);
  EXPECT_EQ(error(submit(kMix, b_.slice(0, 8), c_, 1, "of the half")), kNone);
  EXPECT_NE(error(submit(kMix, b_, c_, 1, "of all")), kNone);
  EXPECT_NE(span_error(c_), kNone);
  EXPECT_EQ(error(submit(kMix, a_, c_, 2, "whole")), kNone);
  EXPECT_EQ(span_error(c_), kNone) << "written by an output";
  EXPECT_EQ(c_.span<uint32_t>()[3], value(5));
  update(8);
  EXPECT_EQ(span_error(b_), kNone);
  EXPECT_EQ(error(submit(kMix, b_, c_, 1, "of all")), kNone);
}

TEST_F(Failure, EndsWhereTheHostWrites) {
  fail(b_);
  std::array<uint32_t, 16> values{9};
  const auto read = [&](const Buffer& buffer) {
    return refusal<DeviceError>(
        [&] { device_.read(buffer, std::as_writable_bytes(std::span(values)).first(buffer.bytes())); });
  };
  EXPECT_EQ(read(b_), "[read] 'b' is undefined: " + kBad);
  device_.write(b_.slice(2, 3), std::span(values).first(3));
  EXPECT_EQ(read(b_.slice(2, 3)), kNone);
  EXPECT_NE(read(b_.slice(1, 2)), kNone);
  EXPECT_NE(read(b_.slice(4, 2)), kNone);
  device_.write(b_, std::span(values));
  EXPECT_EQ(read(b_), kNone);
  EXPECT_EQ(span_error(b_), kNone);
  EXPECT_EQ(error(submit(kMix, b_, c_, 1, "reads")), kNone);
  EXPECT_EQ(c_.span<uint32_t>()[0], value(9));
}

TEST_F(Failure, AnUpdateIsReadByItsOwnSubmission) {
  fail(b_);
  const std::array<uint32_t, 16> values{1, 2, 3};
  const Program reads = program(kMix, b_, c_, 1, "reads");
  const Update all{b_, std::as_bytes(std::span(values))},
      most{b_.slice(0, 15), std::as_bytes(std::span(values)).first(60)};
  EXPECT_NE(error(device_.submit(reads, std::span(&most, 1))), kNone);
  EXPECT_EQ(error(device_.submit(reads, std::span(&all, 1))), kNone);
  EXPECT_EQ(c_.span<uint32_t>()[1], value(2));
  EXPECT_EQ(b_.span<uint32_t>()[2], 3u);
}

TEST_F(Failure, LeavesItsUpdatesUndefinedToo) {
  const std::array<uint32_t, 8> values{1, 2, 3};
  const Update update{c_.slice(4, 8), std::as_bytes(std::span(values))};
  const Program bad = program(kBoom, a_, b_, 0, "bad");
  EXPECT_EQ(error(device_.submit(bad, std::span(&update, 1))), kBad);
  EXPECT_EQ(span_error(c_.slice(4, 8)), "[buffer] span: 'c' is undefined: " + kBad);
  EXPECT_EQ(span_error(c_.slice(0, 4)), kNone);
  EXPECT_EQ(span_error(c_.slice(12, 4)), kNone);
  EXPECT_NE(error(submit(kMix, c_, d_, 1, "reads it")), kNone);
}

// An earlier failure does not undo what a later submission has written, in flight or not.
TEST_F(Failure, OfWhatALaterOneWritesIsNoMatter) {
  fail(b_, /*ended=*/false);
  const Point writes = submit(kMix, a_, b_, 2, "writes");
  const Point reads = submit(kMix, b_, c_, 1, "reads");
  end();
  EXPECT_EQ(error(writes), kNone);
  EXPECT_EQ(error(reads), kNone);
  EXPECT_EQ(span_error(b_), kNone);
  EXPECT_EQ(c_.span<uint32_t>()[0], value(value(5)));
}

TEST_F(Failure, WhatWillBeWrittenWholeMayBeRead) {
  fail(b_);
  const Point later = device_.host_point();
  const Point writes = submit(kMix, a_, b_, 2, "writes", std::array{later});
  const Point reads = submit(kMix, b_, c_, 1, "reads");
  device_.signal(later);
  EXPECT_EQ(error(writes), kNone);
  EXPECT_EQ(error(reads), kNone);
}

TEST_F(Failure, WhatIsKnownToFailDoesNotRun) {
  fail(b_);
  const int before = runs;
  EXPECT_NE(error(submit(kCounted, b_, c_, 1, "first")), kNone);
  EXPECT_NE(error(submit(kCounted, c_, d_, 2, "second")), kNone);
  EXPECT_EQ(error(submit(kCounted, a_, c_, 1, "third")), kNone);
  EXPECT_EQ(runs, before + 1);
}

TEST_F(Failure, StopsItsQueueUntilItIsRecovered) {
  const Point bad = fail(b_, /*ended=*/false);
  const Point behind = submit(kMix, a_, c_, 0, "behind");
  end();
  const std::string why =
      "cpu: did not run: submission 1 of queue 0 'bad' failed: command 0 (boom) 'bad' threw: "
      "exploded";
  EXPECT_EQ(error(behind), "[submission] 'behind', 2 of queue 0: " + why);
  EXPECT_EQ(error(submit(kMix, a_, d_, 0, "late")), "[submission] 'late', 3 of queue 0: " + why);
  device_.recover(1);
  EXPECT_NE(error(submit(kMix, a_, d_, 0, "later")), kNone) << "that was another queue";
  EXPECT_EQ(error(submit(kMix, a_, d_, 1, "apart")), kNone);
  device_.recover(0);
  EXPECT_EQ(error(submit(kMix, a_, d_, 0, "recovered")), kNone);
  EXPECT_EQ(error(submit(kMix, a_, c_, 0, "recovered")), kNone);
  EXPECT_EQ(error(bad), kBad) << "what has failed stays so";
  EXPECT_NE(error(behind), kNone);
  EXPECT_NE(span_error(b_), kNone) << "and what that left";
  EXPECT_NE(error(submit(kMix, b_, c_, 0, "of b")), kNone);
  EXPECT_EQ(error(submit(kMix, a_, d_, 0, "not of b")), kNone) << "a reader stops no queue";
  EXPECT_EQ(refusal([&] { device_.recover(4); }), "[recover] queue: expected less than 4, got 4");
  // It stops again with the next.
  EXPECT_NE(error(submit(kBoom, a_, b_, 0, "bad again")), kNone);
  EXPECT_NE(error(submit(kMix, a_, d_, 0, "behind")).find("'bad again' failed"), std::string::npos);
}

TEST_F(Failure, OfAGivenPointIsFollowed) {
  const Point bad = fail(b_);
  const Point follows = submit(kMix, a_, c_, 1, "follows", std::array{bad});
  EXPECT_NE(error(follows).find("'bad' failed"), std::string::npos);
  EXPECT_NE(span_error(c_), kNone);
  EXPECT_EQ(error(submit(kMix, a_, d_, 1, "apart")), kNone) << "its queue goes on";
}

TEST_F(Failure, OfAProgramWithTempsIsMendedByARun) {
  const auto through_temp = [&](const OpSchema& second, uint32_t queue) {
    CommandEncoder encoder = device_.encoder();
    const Temp t = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(t)}, MixConstants{1, 16, 0, 16});
    dispatch(encoder, second, std::array{Operand(t), Operand(), Operand(b_)}, MixConstants{1, 16, 0, 16});
    dispatch(encoder, kUpdate, std::array{Operand(a_), Operand(b_)}, MixConstants{1, 16, 0, 16});
    return device_.prepare(
        device_.plan(encoder.finish()).first,
        {.queue = queue, .arena = d_.view(DType::u8, {64}), .timestamps = false, .label = {}});
  };
  EXPECT_NE(error(device_.submit(through_temp(kBoom, 0))), kNone);
  EXPECT_NE(span_error(b_), kNone);
  const Program good = through_temp(kMix, 1);
  EXPECT_EQ(error(device_.submit(good)), kNone) << "it writes what it reads, in its arena and in b";
  EXPECT_EQ(span_error(b_), kNone);
}

TEST_F(Failure, RowsThatACountSaysAreNotTheWhole) {
  const Buffer count = device_.buffer(DType::u32, {1}), rows = device_.buffer(DType::u32, {4, 4}, "rows");
  count.span<uint32_t>()[0] = 2;
  fail(rows);
  const auto write = [&](const Buffer& output) {
    CommandEncoder encoder = device_.encoder();
    const Buffer input = a_.view(DType::u32, {4, 4});
    const bool live = output.live_rows().allocation != nullptr;
    dispatch(encoder, kRows, std::array{Operand(live ? input.with_live_rows(count) : input), Operand(output)},
             MixConstants{1, 4, 0, 0});
    device_.wait(encoder.commit({.label = "rows", .queue = 1}), 10s);
  };
  write(rows.with_live_rows(count));
  EXPECT_NE(span_error(rows), kNone);
  write(rows);
  EXPECT_EQ(span_error(rows), kNone);
}

TEST_F(Failure, DoesNotStickToMemoryThatIsGivenOutAgain) {
  BufferPool pool(device_, {.init = PoolInit::unspecified});
  uint64_t id = 0;
  {
    const Buffer buffer = pool.buffer(DType::u32, {16});
    id = buffer.memory()->allocation().id;
    EXPECT_NE(error(submit(kBoom, a_, buffer, 0, "bad")), kNone);
    EXPECT_NE(span_error(buffer), kNone);
  }
  const Buffer again = pool.buffer(DType::u32, {16});
  ASSERT_EQ(again.memory()->allocation().id, id);
  EXPECT_EQ(span_error(again), kNone);
}

TEST_F(Failure, OutlivesTheDevice) {
  fail(b_);
  device_ = Device(cpu(), {}, {});
  EXPECT_EQ(span_error(b_), "[buffer] span: 'b' is undefined: " + kBad);
  EXPECT_EQ(span_error(a_), kNone);
}

TEST_F(Failure, AHostPointOfAClosedDeviceHasFailed) {
  alignas(64) static std::array<uint32_t, 16> memory;
  memory.fill(3);
  const Buffer imported = device_.import_memory(memory.data(), DType::u32, {16}, nullptr, "imported");
  std::atomic<int> reached{0}, failed{0};
  const auto count = [&](const std::exception_ptr& e) { ++(e == nullptr ? reached : failed); };
  const int before = runs;
  const Point waits = submit(kCounted, a_, imported, 0, "waits", std::array{host_});
  device_.when_reached(waits, count);
  device_.when_reached(submit(kMix, imported, c_, 1, "reads it"), count);
  device_.when_reached(host_, count);
  device_ = Device(cpu(), {}, {});
  EXPECT_EQ(failed, 3);
  EXPECT_EQ(reached, 0);
  EXPECT_EQ(runs, before) << "it has not run";
  EXPECT_EQ(memory[0], 3u);
  EXPECT_NE(span_error(imported).find("'waits', 1 of queue 0: cpu: did not run"), std::string::npos)
      << span_error(imported);
  EXPECT_NE(span_error(c_).find("'waits'"), std::string::npos);
}

TEST_F(Failure, APointOfADeviceThatIsGoneIsRefused) {
  const std::string refused = "point: expected one of this device, got another's";
  for (int i = 0; i < 50; ++i) {
    Point stale, host;
    ComputeGraph graph;
    {
      Device gone(std::make_shared<ControlledBackend>(kKernels), {}, {});
      stale = gone.encoder().commit();
      host = gone.host_point();
      graph = gone.encoder().finish();
    }
    Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
    device.encoder().commit();
    device.host_point();
    ASSERT_EQ(refusal([&] { (void)device.reached(stale); }), "[reached] " + refused);
    ASSERT_EQ(refusal([&] { device.signal(host); }), "[signal] " + refused);
    ASSERT_EQ(refusal([&] { (void)device.plan(std::move(graph)); }),
              "[plan] graph: expected one recorded on this device, got another's");
  }
}

// A kernel whose launch throws what it likes.
backend::Launch throw_number(const OpCall&, const backend::DeviceInfo&) { throw 7; }
constexpr OpSchema kOdd{"odd", kUpdateArgs, 0, nullptr};

TEST_F(Failure, OfAnyKindInALaunchFailsTheSession) {
  device_.kernels().add(
      {.name = "odd", .op = &kOdd, .launch = throw_number, .entry = {nullptr, nullptr, explode}});
  EncoderSession session(device_);
  session.begin_stage("stage").dispatch({&kOdd, std::array{Operand(a_), Operand(b_)}, {}});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(refusal<DeviceError>([&] { session.commit_stage(); }),
              "[session] stage 'stage' failed: no exception of the standard library");
  }
  EXPECT_EQ(session.state(), SessionState::failed);
  EXPECT_EQ(device_.counters().submissions, 0u);
}

TEST_F(Failure, OfTheSecondPartLeavesThePointOfTheFirst) {
  const auto backend = std::make_shared<ControlledBackend>(kKernels);
  Device device(backend, {}, {});
  const Buffer a = device.buffer(DType::u32, {16});
  CommandEncoder encoder = device.encoder();
  std::optional<Point> submitted;
  for (int i = 0; i < 200; ++i) {
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  }
  backend->at_prepare = [&] { backend->at_prepare = [] { throw DeviceError("refused"); }; };
  ExecuteOptions options;
  options.split = true;
  options.submitted = &submitted;
  EXPECT_EQ(refusal<DeviceError>([&] { execute(encoder, options); }), "refused");
  ASSERT_TRUE(submitted.has_value());
  EXPECT_FALSE(device.reached(*submitted));
  backend->complete(0, 1);
  device.wait(*submitted, 0s);
}

// Of submissions whose failure nobody waited for, none is lost, however many there are.
TEST_F(Failure, OfLongAgoIsAFailure) {
  const auto backend = std::make_shared<ControlledBackend>(kKernels);
  Device device(backend, {}, {});
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16}, "b");
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 16, 0, 16});
  const Program made = device.prepare(device.plan(encoder.finish("step")).first);
  std::vector<Point> points;
  for (uint64_t i = 1; i <= 4000; ++i) {
    points.push_back(device.submit(made));
    if (i % 2 == 0) {
      backend->fail(0, i);
    } else {
      backend->complete(0, i);
    }
  }
  for (size_t i = 0; i < points.size(); ++i) {
    const std::string said = refusal<DeviceError>([&] { device.wait(points[i]); });
    ASSERT_EQ(said == kNone, i % 2 == 0) << i << ": " << said;
  }
  EXPECT_EQ(device.counters().failures, 2000u);
}

}  // namespace
}  // namespace refrain::null_tests

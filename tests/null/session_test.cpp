// Sessions of stages, order between queues, and failures, on the CPU device and on one that fails as told.
#include "refrain/device/session.h"

#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/format/json.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

constexpr OpSchema kBoom{"boom", kUpdateArgs, 0, nullptr};
void explode(const TileArgs&, uint32_t, uint32_t) { throw std::runtime_error("exploded"); }

std::unique_ptr<backend::Backend> cpu(uint32_t threads) {
  backend::CpuOptions options;
  options.threads = threads;
  return backend::make_validate(backend::make_cpu(options, kKernels));
}

class SessionTest : public testing::TestWithParam<uint32_t> {
 protected:
  SessionTest() {
    device_.kernels().add({.name = "boom", .op = &kBoom, .entry = {nullptr, nullptr, explode}});
  }

  /// output[i] = mixed(mixed(input[i], 0), salt).
  void mix(CommandEncoder& encoder, const Buffer& input, const Buffer& output, uint32_t salt = 1) {
    dispatch(encoder, kMix, std::array{Operand(input), Operand(), Operand(output)},
             MixConstants{salt, 16, 0, 16});
  }
  void boom(CommandEncoder& encoder, const Buffer& a, const Buffer& target) {
    encoder.dispatch({&kBoom, std::array{Operand(a), Operand(target)}, {}});
  }
  Program program(const Buffer& input, const Buffer& output, uint32_t queue, std::string label = {}) {
    CommandEncoder encoder = device_.encoder();
    mix(encoder, input, output);
    PrepareOptions options;
    options.queue = queue;
    options.label = std::move(label);
    return device_.prepare(device_.plan(encoder.finish()).first, options);
  }
  static uint32_t value(uint32_t input, uint32_t salt = 1) { return mixed(mixed(input, 0), salt); }
  uint64_t derived() const { return device_.counters().waits_derived; }

  Device device_{cpu(GetParam()), {}, {}};
  Buffer a_ = device_.buffer(DType::u32, {16}), b_ = device_.buffer(DType::u32, {16}),
         c_ = device_.buffer(DType::u32, {16}), d_ = device_.buffer(DType::u32, {16});
};

TEST_P(SessionTest, QueuesAreOrderedByWhatTheyTouch) {
  const Program writes = program(a_, b_, 0), reads = program(b_, c_, 1), apart = program(a_, d_, 2),
                overwrites = program(d_, a_, 3);
  a_.span<uint32_t>()[0] = 7;
  const Point host = device_.host_point();
  const Point first = device_.submit(writes, {}, std::array{host});  // nothing else holds it back
  const Point second = device_.submit(reads);
  EXPECT_EQ(derived(), 1u) << "read after write";
  const Point third = device_.submit(apart);
  EXPECT_EQ(derived(), 1u) << "both read a, and no more";
  device_.wait(third, 10s);
  const Point fourth = device_.submit(overwrites);
  EXPECT_EQ(derived(), 2u) << "write after read, and what has completed needs no wait";
  std::this_thread::sleep_for(5ms);
  EXPECT_FALSE(device_.reached(first));
  EXPECT_FALSE(device_.reached(second));
  EXPECT_FALSE(device_.reached(fourth));
  device_.signal(host);
  device_.wait(second, 10s);
  device_.wait(fourth, 10s);
  EXPECT_EQ(c_.span<uint32_t>()[0], value(value(7)));
  EXPECT_EQ(a_.span<uint32_t>()[0], value(value(7)));
}

TEST_P(SessionTest, PartsOfABufferAreOrderedAsParts) {
  const Buffer low = b_.slice(0, 8), high = b_.slice(8, 8);
  const Point host = device_.host_point();
  CommandEncoder encoder = device_.encoder();
  dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(low)}, MixConstants{1, 16, 0, 8});
  encoder.commit({.label = "low", .queue = 0, .waits = {host}, .plan = {}});
  CommandEncoder other = device_.encoder();
  dispatch(other, kMix, std::array{Operand(a_), Operand(), Operand(high)}, MixConstants{1, 16, 0, 8});
  device_.wait(other.commit({.label = "high", .queue = 1}), 10s);
  EXPECT_EQ(derived(), 0u);
  device_.signal(host);
  device_.synchronize(b_, 10s);
}

TEST_P(SessionTest, UpdatesAreOrderedToo) {
  const Program copy = program(a_, b_, 0), other = program(c_, d_, 1), same = program(c_, d_, 2);
  const Point host = device_.host_point();
  const uint32_t seven = 7, nine = 9;
  const Update to_a{a_.slice(0, 1), std::as_bytes(std::span(&nine, 1))};
  const Update to_c{c_.slice(0, 1), std::as_bytes(std::span(&seven, 1))};
  device_.submit(copy, {}, std::array{host});
  const Point update = device_.submit(other, std::array{to_a, to_c});
  EXPECT_EQ(derived(), 1u) << "the update writes what the first one reads";
  const Point reader = device_.submit(same);
  EXPECT_EQ(derived(), 2u) << "reads what an update writes, and writes d as well";
  const Program far = program(d_, b_, 3);
  const Update elsewhere{a_.slice(1, 1), std::as_bytes(std::span(&seven, 1))};
  std::this_thread::sleep_for(2ms);
  EXPECT_FALSE(device_.reached(update));
  EXPECT_FALSE(device_.reached(reader));
  device_.signal(host);
  device_.wait(device_.submit(far, std::span(&elsewhere, 1)), 10s);
  device_.synchronize(a_, 10s);
  EXPECT_EQ(a_.span<uint32_t>()[0], 9u);
  EXPECT_EQ(d_.span<uint32_t>()[0], value(7));
}

TEST_P(SessionTest, AnArenaThatTwoQueuesShareIsOrdered) {
  const auto through_temp = [&](const Buffer& input, const Buffer& output, uint32_t queue,
                                const Buffer& arena) {
    CommandEncoder encoder = device_.encoder();
    const Temp t = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(input), Operand(), Operand(t)}, MixConstants{1, 16, 0, 16});
    dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(output)}, MixConstants{1, 16, 0, 16});
    return device_.prepare(device_.plan(encoder.finish()).first,
                           {.queue = queue, .arena = arena, .timestamps = false, .label = {}});
  };
  const Buffer shared = device_.buffer(DType::u8, {1024});
  const Program one = through_temp(a_, b_, 0, shared), two = through_temp(c_, d_, 1, shared),
                three = through_temp(c_, a_, 2, {});
  const Point host = device_.host_point();
  device_.submit(one, {}, std::array{host});
  device_.submit(two);
  EXPECT_EQ(derived(), 1u);
  const Point last = device_.submit(three);
  EXPECT_EQ(derived(), 2u) << "an arena of its own, but it writes what the first one reads";
  device_.signal(host);
  device_.wait(last, 10s);
}

TEST_P(SessionTest, AGivenPointSparesTheDerivedOne) {
  const Program writes = program(a_, b_, 0), reads = program(b_, c_, 1);
  const Point host = device_.host_point();
  const Point first = device_.submit(writes, {}, std::array{host});
  device_.submit(reads, {}, std::array{first});
  EXPECT_EQ(derived(), 0u);
  device_.signal(host);
  device_.synchronize(c_, 10s);
}

TEST_P(SessionTest, SynchronizeWaitsForTheBytesAndNothingElse) {
  const Program writes = program(a_, b_, 0), apart = program(c_, d_, 1);
  const Point host = device_.host_point();
  device_.submit(writes, {}, std::array{host});
  const Point done = device_.submit(apart);
  device_.synchronize(d_, 10s);
  EXPECT_TRUE(device_.reached(done));
  EXPECT_NE(refusal<TimeoutError>([&] { device_.synchronize(b_.slice(3, 1), 2ms); }), "nothing was thrown");
  EXPECT_NE(refusal<TimeoutError>([&] { device_.synchronize(a_, 2ms); }), "nothing was thrown")
      << "the host may write it, so readers count";
  EXPECT_NE(refusal([&] { device_.synchronize(Buffer()); }), "nothing was thrown");
  device_.signal(host);
  device_.synchronize(b_, 10s);
}

TEST_P(SessionTest, StagesRunInOrderOfTheirData) {
  EncoderSession session(device_, "test");
  a_.span<uint32_t>()[0] = 5;
  mix(session.begin_stage("one", {.queue = 0}), a_, b_);
  const Point first = session.commit_stage();
  mix(session.begin_stage("two", {.queue = 1}), b_, c_);
  session.commit_stage();
  mix(session.begin_stage("three", {.queue = 2}), c_, d_);
  const Point last = session.fence_stage();
  EXPECT_EQ(session.submitted(), 3u);
  session.wait(10s);
  EXPECT_TRUE(device_.reached(first));
  EXPECT_TRUE(device_.reached(last));
  EXPECT_EQ(d_.span<uint32_t>()[0], value(value(value(5))));
  session.wait(0ns);  // nothing is left

  // After a wait the next stage begins as any other.
  mix(session.begin_stage("four", {.queue = 0}), d_, a_);
  session.commit_stage();
  session.wait(10s);
  EXPECT_EQ(a_.span<uint32_t>()[0], value(value(value(value(5)))));
}

TEST_P(SessionTest, AFenceHoldsLaterStagesBackOnEveryQueue) {
  EncoderSession session(device_);
  const Point host = device_.host_point();
  mix(session.begin_stage("fenced", {.queue = 0, .waits = {host}, .plan = {}}), a_, b_);
  session.fence_stage();
  mix(session.begin_stage("apart", {.queue = 1}), c_, d_);
  const Point apart = session.commit_stage();
  EncoderSession other(device_);
  mix(other.begin_stage("free", {.queue = 2}), c_, device_.buffer(DType::u32, {16}));
  device_.wait(other.commit_stage(), 10s);
  EXPECT_FALSE(device_.reached(apart)) << "no data in common, only the fence";
  device_.signal(host);
  session.wait(10s);
  EXPECT_TRUE(device_.reached(apart));
}

TEST_P(SessionTest, WaitCoversWhateverWasSubmitted) {
  EncoderSession session(device_);
  const Point host = device_.host_point();
  mix(session.begin_stage("held", {.queue = 0, .waits = {host}, .plan = {}}), a_, b_);
  session.commit_stage();
  mix(session.begin_stage("done", {.queue = 1}), c_, d_);
  session.fence_stage();
  EXPECT_EQ(refusal<TimeoutError>([&] { session.wait(2ms); }),
            "[session] wait: stage 'held' has not completed within 2 ms");
  EXPECT_EQ(session.state(), SessionState::idle) << "a timeout is no failure";
  device_.signal(host);
  session.wait(10s);
}

TEST_P(SessionTest, EveryCallInEveryState) {
  const auto begin = [&](EncoderSession& s) { mix(s.begin_stage("open"), a_, b_); };
  const auto failing = [&](EncoderSession& s) {
    boom(s.begin_stage("bad"), a_, b_);
    s.commit_stage();
    EXPECT_NE(refusal<DeviceError>([&] { s.wait(10s); }), "nothing was thrown");
  };
  const std::pair<const char*, std::function<void(EncoderSession&)>> calls[] = {
      {"begin_stage", begin},
      {"stage", [](EncoderSession& s) { s.stage(); }},
      {"commit_stage", [](EncoderSession& s) { s.commit_stage(); }},
      {"fence_stage", [](EncoderSession& s) { s.fence_stage(); }},
      {"drop_stage", [](EncoderSession& s) { s.drop_stage(); }},
      {"wait", [](EncoderSession& s) { s.wait(10s); }},
      {"profile", [](EncoderSession& s) { (void)s.profile(10s); }},
      {"profile", [](EncoderSession& s) { (void)s.profile(Point{}, 10s); }},
  };
  for (size_t i = 0; i < std::size(calls); ++i) {
    SCOPED_TRACE(calls[i].first);
    const std::string prefix = std::string("[session] ") + calls[i].first + ": ";
    const bool idle = i == 0 || i == 5;
    // The queue of the failing stage is of a device of its own, as it stays failed.
    EncoderSession fresh(device_), open(device_), moved(device_);
    begin(open);
    EncoderSession taken = std::move(moved);
    EXPECT_EQ(refusal([&] { calls[i].second(fresh); }),
              idle     ? "nothing was thrown"
              : i == 6 ? prefix + "expected stages with timestamps, got none"
              : i == 7 ? prefix + "expected the point of a stage with timestamps, got another"
                       : prefix + "no stage is open");
    EXPECT_EQ(refusal([&] { calls[i].second(open); }),
              idle || i >= 6 ? prefix + "a stage is open: 'open'" : "nothing was thrown");
    EXPECT_EQ(refusal([&] { calls[i].second(moved); }), prefix + "it was moved from");  // NOLINT
    EXPECT_EQ(moved.state(), SessionState::moved_from);                                 // NOLINT
  }
  EncoderSession failed(device_);
  failing(failed);
  EXPECT_EQ(failed.state(), SessionState::failed);
  for (const auto& [name, call] : calls) {
    EXPECT_EQ(refusal<DeviceError>([&, &made = call] { made(failed); }),
              "[session] stage 'bad' failed: [submission] 'bad', " +
                  std::to_string(device_.counters().submissions) +
                  " of queue 0: cpu: command 0 (boom) 'bad' threw: exploded")
        << name << ": sticky";
  }
  EncoderSession options(device_);
  EXPECT_EQ(refusal([&] { options.begin_stage(""); }), "[session] begin_stage: expected a label, got none");
  EXPECT_EQ(refusal([&] { options.begin_stage("x", {.queue = 9}); }),
            "[session] begin_stage: queue: expected less than 4, got 9");
  EXPECT_NE(refusal([&] { options.begin_stage("x", {.queue = 0, .waits = {Point{}}, .plan = {}}); }),
            "nothing was thrown");
  EXPECT_EQ(options.state(), SessionState::idle);
}

TEST_P(SessionTest, AStageCannotBeCommittedFromOutside) {
  EncoderSession session(device_);
  CommandEncoder& stage = session.begin_stage("mine");
  mix(stage, a_, b_);
  const std::string lent = ": expected an encoder of your own, got a session's stage; end it there";
  EXPECT_EQ(refusal([&] { stage.commit(); }), "[encoder] commit" + lent);
  EXPECT_EQ(refusal([&] { stage.finish(); }), "[encoder] finish" + lent);
  EXPECT_EQ(device_.counters().submissions, 0u);
}

TEST_P(SessionTest, AStageIsNeitherTakenNorReplaced) {
  EncoderSession session(device_);
  mix(session.begin_stage("mine"), a_, b_);
  CommandEncoder other = device_.encoder();
  mix(other, b_, a_);
  const std::string lent =
      "[encoder] move: expected an encoder of your own, got a session's stage; end it there";
  EXPECT_EQ(refusal([&] { CommandEncoder stolen = std::move(session.stage()); }), lent);
  EXPECT_EQ(refusal([&] { other = std::move(session.stage()); }), lent);
  EXPECT_EQ(refusal([&] { session.stage() = std::move(other); }), lent);
  EXPECT_EQ(other.state(), EncoderState::recording);
  EXPECT_EQ(session.stage().state(), EncoderState::recording);
  session.commit_stage();
  other.commit();
  session.wait(10s);
  EXPECT_EQ(device_.counters().submissions, 2u);
}

TEST_P(SessionTest, MovedOntoItselfItStays) {
  EncoderSession session(device_, "mine");
  mix(session.begin_stage("first"), a_, b_);
  EncoderSession& same = session;
  session = std::move(same);
  EXPECT_EQ(session.state(), SessionState::recording);
  const Point point = session.commit_stage();
  session = std::move(same);
  session.wait(10s);
  EXPECT_TRUE(device_.reached(point));
  EncoderSession other(device_);
  mix(other.begin_stage("other"), a_, b_);
  CommandEncoder& stage = other.stage();
  session = std::move(other);
  EXPECT_EQ(&session.stage(), &stage);
  EXPECT_EQ(other.state(), SessionState::moved_from);  // NOLINT
}

// The stage that a wait gave up on completes before the wait has said so.
TEST(Session, ATimeoutNamesWhatHasNotCompleted) {
  const auto backend = std::make_shared<ControlledBackend>(kKernels);
  Device device(backend, {}, {});
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  EncoderSession session(device);
  const std::string first = "a first stage with a label that is long", second = "and a second one like that";
  for (const std::string& label : {first, second}) {
    dispatch(session.begin_stage(label), kMix, std::array{Operand(a), Operand(), Operand(b)},
             MixConstants{1, 16, 0, 16});
    session.commit_stage();
  }
  backend->before_completed = [&] { backend->complete(0, 1); };
  EXPECT_EQ(refusal<TimeoutError>([&] { session.wait(1ms); }),
            "[session] wait: stage '" + second + "' has not completed within 1 ms");
  backend->before_completed = [&] { backend->complete(0, 2); };
  EXPECT_EQ(refusal<TimeoutError>([&] { session.wait(1ms); }), "nothing was thrown");
}

TEST_P(SessionTest, TheFirstFailingStageIsReported) {
  EncoderSession session(device_, "decode");
  mix(session.begin_stage("good", {.queue = 0}), c_, d_);
  session.commit_stage();
  const Point host = device_.host_point();  // until all are submitted, so that the last waits for the bad one
  {
    CommandEncoder& stage = session.begin_stage("bad", {.queue = 1, .waits = {host}, .plan = {}});
    const auto scope = stage.scope("layer 3");
    boom(stage, a_, b_);
  }
  session.commit_stage();
  mix(session.begin_stage("after it", {.queue = 2}), b_, a_);  // reads what the bad one writes
  const Point after = session.commit_stage();
  device_.signal(host);
  const std::string first =
      "[session] stage 'decode / bad' failed: [submission] 'decode / bad', 1 of queue 1: cpu: command 0 "
      "(boom) "
      "'layer 3' threw: exploded";
  EXPECT_EQ(refusal<DeviceError>([&] { session.wait(10s); }), first);
  EXPECT_EQ(refusal<DeviceError>([&] { session.wait(10s); }), first) << "a second wait finds no success";
  EXPECT_EQ(
      refusal<DeviceError>([&] { device_.wait(after, 10s); }),
      "[submission] 'decode / after it', 1 of queue 2: reads what a failure left undefined: [submission] "
      "'decode / bad', 1 of queue 1: cpu: command 0 (boom) 'layer 3' threw: exploded");
  EXPECT_EQ(device_.counters().failures, 2u);
}

TEST_P(SessionTest, AFailedSignallerHangsNobody) {
  EncoderSession session(device_);
  boom(session.begin_stage("signaller", {.queue = 0}), a_, b_);
  session.fence_stage();
  std::string second;
  try {
    mix(session.begin_stage("waiter", {.queue = 1}), c_, d_);
    session.commit_stage();
    session.wait(10s);
  } catch (const DeviceError& error) {
    second = error.what();
  }
  EXPECT_EQ(second.substr(0, 34), "[session] stage 'signaller' failed") << second;
  // What follows on the failed queue fails, with the cause; other queues live.
  CommandEncoder next = device_.encoder(), other = device_.encoder();
  mix(next, c_, d_);
  mix(other, c_, d_);
  EXPECT_NE(refusal<DeviceError>([&] {
              device_.wait(next.commit({.label = "next", .queue = 0}), 10s);
            }).find("did not run: submission 1 of queue 0 'signaller' failed: command 0 (boom)"),
            std::string::npos);
  device_.wait(other.commit({.label = "other", .queue = 3}), 10s);
}

TEST_P(SessionTest, AStageThatCannotBePlannedFailsTheSession) {
  static constexpr OpSchema kUnknown{"unknown", kUpdateArgs, 0, nullptr};
  EncoderSession session(device_);
  session.begin_stage("odd").dispatch({&kUnknown, std::array{Operand(a_), Operand(b_)}, {}});
  const std::string said = refusal([&] { session.commit_stage(); });
  EXPECT_EQ(said.substr(0, 28), "[session] stage 'odd' failed") << said;
  EXPECT_EQ(refusal([&] { session.begin_stage("next"); }), said);
}

TEST_P(SessionTest, ADropInAnyStateIsSafe) {
  Point held;
  const Point host = device_.host_point();
  {
    EncoderSession idle(device_), open(device_), flying(device_), dropped(device_);
    mix(open.begin_stage("open"), a_, b_);
    mix(dropped.begin_stage("dropped"), a_, b_);
    dropped.drop_stage();
    dropped.wait(0ns);
    mix(flying.begin_stage("flying", {.queue = 1, .waits = {host}, .plan = {}}), c_, d_);
    held = flying.commit_stage();
    mix(flying.begin_stage("open"), a_, b_);
  }
  EXPECT_EQ(device_.counters().submissions, 1u);
  device_.signal(host);
  device_.wait(held, 10s);
}

TEST_P(SessionTest, EveryStageHasItsTimesFencedOrNot) {
  EncoderSession session(device_, "step");
  {
    CommandEncoder& stage = session.begin_stage("one", {.queue = 0, .plan = {}, .timestamps = true});
    const auto scope = stage.scope("layer");
    mix(stage, a_, b_);
    mix(stage, b_, c_);
  }
  const Point one = session.fence_stage();
  mix(session.begin_stage("untimed", {.queue = 1}), a_, d_);
  const Point untimed = session.commit_stage();
  mix(session.begin_stage("two", {.queue = 2, .plan = {}, .timestamps = true}), c_, b_);
  const Point two = session.commit_stage();
  session.begin_stage("empty", {.queue = 2, .plan = {}, .timestamps = true});
  const Point empty = session.commit_stage();
  session.wait(10s);
  EXPECT_EQ(device_.counters().programs_prepared, 4u);

  const Profile first = session.profile(one);
  EXPECT_EQ(first.label(), "step / one");
  ASSERT_EQ(first.spans().size(), 2u);
  EXPECT_EQ(first.spans()[0].label, "layer");
  EXPECT_GT(first.spans()[0].begin_ns, 0);
  EXPECT_EQ(session.profile(two).label(), "step / two");
  EXPECT_EQ(session.profile(empty).spans().size(), 0u);

  const Profile all = session.profile();
  EXPECT_EQ(all.label(), "step");
  ASSERT_EQ(all.spans().size(), 3u);
  EXPECT_EQ(all.spans()[1].submission, "step / one");
  EXPECT_EQ(all.spans()[2].submission, "step / two");
  EXPECT_GE(all.spans()[2].begin_ns, all.spans()[1].end_ns) << "the fence ended the first stage";
  const std::string trace = all.chrome_trace();
  EXPECT_NO_THROW(format::Json::parse(trace, "trace")) << trace;
  EXPECT_NE(trace.find("\"submission\":\"step / one\""), std::string::npos) << trace;
  EXPECT_NE(trace.find("\"submission\":\"step / two\""), std::string::npos) << trace;
  EXPECT_EQ(all.rows(ProfileKey::submission).size(), 2u);

  const std::string other = "[session] profile: expected the point of a stage with timestamps, got another";
  EXPECT_EQ(refusal([&] { (void)session.profile(untimed); }), other);
  EXPECT_EQ(refusal([&] { (void)session.profile(Point{}); }), other);
  EXPECT_EQ(refusal([&] { (void)EncoderSession(device_).profile(); }),
            "[session] profile: expected stages with timestamps, got none");
}

TEST_P(SessionTest, TimesDoNotHoldTheMemoryOfTheirStage) {
  EncoderSession session(device_);
  const size_t before = device_.memory().used_bytes;
  for (int i = 0; i < 3; ++i) {
    const Buffer input = device_.buffer(DType::u32, {1 << 14});
    mix(session.begin_stage("stage", {.queue = 0, .plan = {}, .timestamps = true}), input.slice(0, 16), b_);
    session.commit_stage();
  }
  session.wait(10s);
  mix(session.begin_stage("next"), a_, b_);  // a submission lets go of those that have completed
  session.commit_stage();
  EXPECT_LE(device_.memory().used_bytes, before);
  EXPECT_EQ(session.profile(10s).spans().size(), 3u);
}

TEST_P(SessionTest, AProfileWaitsForEveryStage) {
  EncoderSession session(device_);
  const Point host = device_.host_point();
  mix(session.begin_stage("held", {.queue = 1, .waits = {host}, .plan = {}, .timestamps = true}), a_, b_);
  const Point held = session.commit_stage();
  EXPECT_EQ(refusal<TimeoutError>([&] { (void)session.profile(2ms); }),
            "[session] wait: stage 'held' has not completed within 2 ms");
  EXPECT_NE(refusal<TimeoutError>([&] { (void)session.profile(held, 0ns); }), "nothing was thrown");
  device_.signal(host);
  EXPECT_EQ(session.profile(10s).spans().size(), 1u);
  EXPECT_EQ(session.profile(held, 0ns).spans().size(), 1u);
}

TEST_P(SessionTest, AnyTimeoutIsATimeout) {
  EncoderSession session(device_);
  const Point host = device_.host_point();
  mix(session.begin_stage("held", {.queue = 0, .waits = {host}, .plan = {}}), a_, b_);
  session.commit_stage();
  for (const std::chrono::nanoseconds timeout : {0ns, -1ns, std::chrono::nanoseconds::min()}) {
    EXPECT_NE(refusal<TimeoutError>([&] { session.wait(timeout); }), "nothing was thrown");
    EXPECT_NE(refusal<TimeoutError>([&] { device_.synchronize(b_, timeout); }), "nothing was thrown");
  }
  std::thread signaller([&] { device_.signal(host); });
  session.wait(std::chrono::nanoseconds::max());
  device_.synchronize(b_, std::chrono::nanoseconds::max());
  signaller.join();
}

TEST_P(SessionTest, WhateverAUsersKernelThrowsFailsTheSession) {
  static constexpr OpSchema kOdd{"odd", kUpdateArgs, 0, nullptr};
  device_.kernels().add({.name = "odd",
                         .op = &kOdd,
                         .accepts = [](const OpCall&) -> bool { throw std::runtime_error("cannot say"); },
                         .entry = {nullptr, nullptr, explode}});
  EncoderSession session(device_);
  session.begin_stage("one").dispatch({&kOdd, std::array{Operand(a_), Operand(b_)}, {}});
  const std::string said = refusal<DeviceError>([&] { session.commit_stage(); });
  EXPECT_EQ(said, "[session] stage 'one' failed: cannot say");
  EXPECT_EQ(session.state(), SessionState::failed);
  EXPECT_EQ(refusal<DeviceError>([&] { session.wait(10s); }), said);
  EXPECT_EQ(session.submitted(), 0u);
}

TEST_P(SessionTest, SessionsOfManyThreadsOnAllQueues) {
  constexpr uint32_t kThreads = 4, kStages = 40;
  std::vector<Buffer> chains;
  for (uint32_t t = 0; t < kThreads; ++t) chains.push_back(device_.buffer(DType::u32, {16}));
  std::vector<std::thread> threads;
  std::array<size_t, kThreads> spans{};
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      EncoderSession session(device_, "thread");
      for (uint32_t i = 0; i < kStages; ++i) {
        // All read and write one buffer as well, so that the threads wait for each other's stages.
        CommandEncoder& stage =
            session.begin_stage("stage", {.queue = (t + i) % 4, .plan = {}, .timestamps = i % 2 == 0});
        mix(stage, chains[t], chains[t], 2 * i + 1);
        mix(stage, chains[t], i % 5 == 0 ? a_ : b_);
        i % 3 == 0 ? session.fence_stage() : session.commit_stage();
      }
      session.wait(60s);
      spans[t] = session.profile().spans().size();
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint32_t expected = 0;
  for (uint32_t i = 0; i < kStages; ++i) expected = value(expected, 2 * i + 1);
  for (uint32_t t = 0; t < kThreads; ++t) {
    EXPECT_EQ(chains[t].span<uint32_t>()[3], expected) << t;
    EXPECT_EQ(spans[t], kStages) << "two commands in every second stage";
  }
  EXPECT_EQ(b_.span<uint32_t>()[3], value(expected));
}

INSTANTIATE_TEST_SUITE_P(Threads, SessionTest, testing::Values(1u, 2u));

// The last handle of a device goes while a stage waits for the host: it fails, on memory that is held.
TEST(SessionDrop, AHostPointThatNobodySignalsHangsNobody) {
  Buffer output;
  {
    Device device(cpu(2), {}, {});
    output = device.buffer(DType::u32, {16});
    EncoderSession session(device);
    const Buffer input = device.buffer(DType::u32, {16});
    for (const uint32_t queue : {0u, 1u}) {
      dispatch(session.begin_stage("held", {.queue = queue, .waits = {device.host_point()}, .plan = {}}),
               kMix, std::array{Operand(queue == 0 ? input : output), Operand(), Operand(output)},
               MixConstants{1, 16, 0, 16});
      session.fence_stage();
    }
    EXPECT_NE(refusal<TimeoutError>([&] { session.wait(0ns); }), "nothing was thrown");
  }
  EXPECT_NE(refusal<DeviceError>([&] { (void)output.span<uint32_t>(); }).find("'held', 1 of queue 0"),
            std::string::npos)
      << "it has failed";
}

// Between the look whether a stage has failed and the look whether it has completed, it fails.
TEST(SessionRace, AFailureBetweenTwoLooksIsKept) {
  for (int look = 0; look < 4; ++look) {
    auto backend = std::make_shared<ControlledBackend>(kKernels);
    Device device(backend, {}, {});
    EncoderSession session(device);
    const auto stage = [&](const char* label) {
      const Buffer a = device.buffer(DType::u32, {16});
      dispatch(session.begin_stage(label), kMix, std::array{Operand(a), Operand(), Operand(a)},
               MixConstants{1, 16, 0, 16});
    };
    stage("bad");
    session.commit_stage();
    int looks = 0;
    backend->before_completed = [&] {
      if (looks++ == look) backend->fail(0, 1);
    };
    const std::string said = refusal<DeviceError>([&] {
      stage("next");
      session.drop_stage();
      if (looks <= look) backend->fail(0, 1);
      session.wait(10s);
    });
    backend->before_completed = nullptr;
    EXPECT_NE(said.find("stage 'bad' failed"), std::string::npos) << said;
    EXPECT_EQ(session.state(), SessionState::failed);
  }
}

class Faults : public testing::Test {
 protected:
  Program program(Device& device) {
    CommandEncoder encoder = device.encoder();
    const auto scope = encoder.scope("layer 1");
    const Buffer a = device.buffer(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
    PrepareOptions options;
    options.label = "step";
    return device.prepare(device.plan(encoder.finish()).first, options);
  }
  std::shared_ptr<backend::Backend> backend(const backend::FaultPlan& plan) {
    backend::CpuOptions options;
    options.threads = 1;
    return backend::make_fault(backend::make_cpu(options, kKernels), plan);
  }
};

TEST_F(Faults, RefusalsAreErrorsAndTheDeviceLives) {
  backend::FaultPlan plan;
  plan.allocation = plan.prepare = plan.submit = 2;
  Device device(backend(plan), {}, {});
  const Program made = program(device);
  EXPECT_NE(refusal<DeviceError>([&] { device.buffer(DType::u8, {1}); }), "nothing was thrown");
  EXPECT_NE(refusal<DeviceError>([&] { program(device); }), "nothing was thrown");
  device.wait(device.submit(made), 10s);
  EXPECT_NE(refusal<DeviceError>([&] { device.submit(made); }), "nothing was thrown");
  device.wait(device.submit(made), 10s);
  EXPECT_EQ(device.counters().submissions, 2u);
}

TEST_F(Faults, AnUnobservedFailureIsToldToTheLogAndToLaterWaits) {
  std::vector<std::string> told;
  DeviceOptions options;
  options.log = [&](LogLevel level, std::string_view message) {
    EXPECT_EQ(level, LogLevel::warning);
    told.emplace_back(message);
  };
  backend::FaultPlan plan;
  plan.command = 1;
  Device device(backend(plan), {}, options);
  const Point failed = device.submit(program(device));
  test::eventually([&] { return device.reached(failed); });
  CommandEncoder other = device.encoder();
  other.commit({.label = "other", .queue = 1});
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].substr(0, 30), "[submission] 'step', 1 of queu") << told[0];
  EXPECT_NE(told[0].find("'layer 1'"), std::string::npos) << told[0];
  EXPECT_EQ(refusal<DeviceError>([&] { device.wait(failed, 10s); }), told[0]);
  EXPECT_EQ(device.counters().failures, 1u);
}

TEST_F(Faults, OfALostDeviceEveryCallThrows) {
  const auto fault = backend({});
  Device device(fault, {}, {});
  const Program made = program(device);
  const Buffer buffer = device.buffer(DType::u32, {16});
  EncoderSession session(device);
  CommandEncoder& stage = session.begin_stage("stage");
  dispatch(stage, kMix, std::array{Operand(buffer), Operand(), Operand(buffer)}, MixConstants{1, 16, 0, 16});
  CommandEncoder encoder = device.encoder();
  const Point host = device.host_point();
  const Point point = device.submit(made, {}, std::array{host});
  backend::FaultPlan loss;
  loss.loss = 1;
  backend::set_faults(*fault, loss);
  EXPECT_NE(refusal<DeviceLost>([&] { device.buffer(DType::u8, {1}); }), "nothing was thrown");
  const std::function<void()> calls[] = {
      [&] { device.buffer(DType::u8, {1}); },
      [&] { device.encoder(); },
      [&] { device.plan({}); },
      [&] { device.prepare(made.plan()); },
      [&] { device.submit(made); },
      [&] { device.wait(point, 1s); },
      [&] { (void)device.reached(point); },
      [&] { device.synchronize(buffer, 1s); },
      [&] { device.host_point(); },
      [&] { device.signal(host); },
      [&] { (void)device.timestamps_ns(made); },
      [&] { device.kernels(); },
      [&] { device.pack({}, {Use::vector}); },
      [&] { encoder.commit(); },
      [&] { session.commit_stage(); },
      [&] { session.wait(1s); },
      [&] { EncoderSession another(device); },
  };
  size_t index = 0;
  for (const auto& call : calls) {
    EXPECT_NE(refusal<DeviceLost>(call), "nothing was thrown") << index;
    ++index;
  }
  EXPECT_EQ(session.state(), SessionState::failed);
  EXPECT_EQ(device.info().backend, "cpu");
  EXPECT_EQ(device.counters().submissions, 1u);
}

TEST_F(Faults, ADelayIsATimeoutAndNoFailure) {
  backend::FaultPlan plan;
  plan.delay = 30ms;
  Device device(backend(plan), {}, {});
  const Point point = device.submit(program(device));
  EXPECT_EQ(refusal<TimeoutError>([&] { device.wait(point, 1ms); }),
            "[wait] queue 0 has not completed submission 1 'step' within 1 ms");
  device.wait(point, 10s);
  EXPECT_EQ(device.counters().timeouts, 1u);
  EXPECT_EQ(device.counters().failures, 0u);
}

}  // namespace
}  // namespace refrain::null_tests

// What a session asks of its device for each stage, on one that completes and fails as told: waits, times, plans.
#include <gtest/gtest.h>

#include <thread>

#include "refrain/device/session.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

class SessionStages : public ::testing::Test {
 protected:
  /// Opens a stage of one command on memory of its own.
  void stage(uint32_t queue, bool timestamps = false) {
    const Buffer a = device_.buffer(DType::u32, {16});
    dispatch(
        session_.begin_stage("stage", {.queue = queue, .waits = {}, .plan = {}, .timestamps = timestamps}),
        kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  }
  using Waits = std::vector<std::pair<uint32_t, uint64_t>>;
  /// Of the last submission: queues and values.
  Waits waits() const {
    Waits list;
    for (const backend::Point& point : backend_->waits) list.emplace_back(point.queue, point.value);
    return list;
  }

  std::shared_ptr<ControlledBackend> backend_ = std::make_shared<ControlledBackend>(kKernels);
  Device device_{backend_, {}, {}};
  EncoderSession session_{device_};
};

TEST_F(SessionStages, AFenceOnOneQueueLeavesThoseOfOthers) {
  stage(0);
  session_.fence_stage();
  EXPECT_EQ(waits(), Waits{});
  stage(1);
  session_.fence_stage();
  EXPECT_EQ(waits(), (Waits{{0, 1}}));
  stage(1);
  session_.commit_stage();
  EXPECT_EQ(waits(), (Waits{{0, 1}, {1, 1}}));
  stage(0);
  session_.fence_stage();
  EXPECT_EQ(waits(), (Waits{{0, 1}, {1, 1}}));
  stage(1);
  session_.commit_stage();
  EXPECT_EQ(waits(), (Waits{{1, 1}, {0, 2}})) << "the later fence of a queue stands for the earlier";
}

// What one stage has taken of the time is not there for the next.
TEST_F(SessionStages, ShareOneTimeout) {
  for (const uint32_t queue : {0u, 1u}) {
    stage(queue);
    session_.commit_stage();
  }
  backend_->at_wait = [&](const backend::Point& point) {
    std::this_thread::sleep_for(20ms);
    backend_->complete(point.queue, point.value);
  };
  session_.wait(20s);
  ASSERT_EQ(backend_->timeouts.size(), 2u);
  for (const uint32_t queue : {0u, 1u}) {
    EXPECT_EQ(backend_->timeouts[queue].first.queue, queue);
    EXPECT_LE(backend_->timeouts[queue].second, 20s - queue * 20ms);
  }
}

// A stage that is let go of before anybody waits for it keeps its times.
TEST_F(SessionStages, TimesOfOneThatTheNextFindsCompleted) {
  stage(0, /*timestamps=*/true);
  session_.commit_stage();
  backend_->complete(0, 1);
  session_.begin_stage("next");
  session_.drop_stage();
  EXPECT_EQ(session_.profile(0ns).spans().size(), 1u);
}

TEST_F(SessionStages, ArePlannedAsTheyWereBegun) {
  const Buffer a = device_.buffer(DType::u32, {16});
  size_t arena_bytes[2] = {};
  for (const bool reuse : {false, true}) {
    StageOptions options;
    options.plan.reuse_memory = reuse;
    CommandEncoder& recording = session_.begin_stage("stage", options);
    std::vector<Temp> temps;
    for (int i = 0; i < 4; ++i) temps.push_back(recording.temp(DType::u32, {16}));
    for (size_t i = 0; i < temps.size(); ++i) {
      dispatch(recording, kMix,
               std::array{i == 0 ? Operand(a) : Operand(temps[i - 1]), Operand(), Operand(temps[i])},
               MixConstants{1, 16, 0, 16});
    }
    session_.commit_stage();
    arena_bytes[reuse] = backend_->prepared.arena.bytes;
  }
  EXPECT_EQ(arena_bytes[0], 4 * 64u);
  EXPECT_LT(arena_bytes[1], 4 * 64u);
}

TEST_F(SessionStages, AFullQueueLeavesTheStageOpen) {
  DeviceOptions options;
  options.in_flight_limit = 1;
  options.patience = 1ms;
  device_ = Device(backend_, {}, options);
  session_ = EncoderSession(device_);
  stage(0, /*timestamps=*/true);
  session_.commit_stage();
  stage(0, /*timestamps=*/true);
  EXPECT_THROW(session_.commit_stage(), TimeoutError);
  EXPECT_EQ(session_.state(), SessionState::recording);
  backend_->complete(0, 1);
  EXPECT_EQ(session_.commit_stage().value, 2u);
  backend_->complete(0, 2);
  session_.wait(10s);
  EXPECT_EQ(session_.submitted(), 2u);
  EXPECT_EQ(session_.profile().spans().size(), 2u);
}

TEST_F(SessionStages, ALossThatTheNextFindsIsALoss) {
  stage(0);
  session_.commit_stage();
  backend_->lose();
  const std::string said =
      "[session] stage 'stage' failed: [submission] 'stage', 1 of queue 0: controlled: lost";
  EXPECT_EQ(refusal<DeviceLost>([&] { session_.begin_stage("next"); }), said);
  EXPECT_EQ(refusal<DeviceLost>([&] { session_.wait(10s); }), said);
}

TEST_F(SessionStages, ALossWhileItIsWaitedForIsALoss) {
  for (int i = 0; i < 2; ++i) {
    stage(0);
    session_.commit_stage();
  }
  backend_->at_wait = [&](const backend::Point&) { backend_->lose(); };
  const std::string said = "[session] stage 'stage' failed: [submission] 'stage': controlled: lost";
  EXPECT_EQ(refusal<DeviceLost>([&] { session_.wait(10s); }), said);
  EXPECT_EQ(refusal<DeviceLost>([&] { session_.wait(10s); }), said);
  EXPECT_EQ(refusal<DeviceLost>([&] { session_.begin_stage("next"); }), said);
}

}  // namespace
}  // namespace refrain::null_tests

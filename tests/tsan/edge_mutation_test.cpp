// The mutation tool on plans made by hand: whole plans give no report, and each dropped edge gives one, every
// time.
#include "tests/tsan/edge_mutation.h"

#include <gtest/gtest.h>

#include "refrain/backend/null/null_backend.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr uint32_t kRows = 16;
constexpr size_t kBytes = kRows * sizeof(uint32_t);
constexpr int kRepetitions = 5;

class EdgeMutation : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!under_thread_sanitizer()) GTEST_SKIP() << "this build has no ThreadSanitizer";
  }

  Argument cells(Access access, uint32_t index) const {
    return {arena_view(index * kBytes, kBytes), access, false};
  }

  /// `delay_us`: what a tile rests for, so that others come for the next.
  void command(const Kernel& kernel, std::initializer_list<Argument> args, bool live = false,
               uint32_t delay_us = 0) {
    PlanBuilder::Options options;
    options.launch = {kRows, 1, 1, 0};
    options.constants.value = 1;
    options.constants.delay_us = delay_us;
    options.constants.seed = delay_us == 0 ? 0 : static_cast<uint32_t>(builder_.plan.commands.size()) + 1;
    if (live) options.live = in(view(live_));
    builder_.add(kernel, args, options);
  }

  void expect_each_edge_reported(size_t edge_count) {
    builder_.plan.arena_bytes = 8 * kBytes;
    builder_.derive_deps();
    const uint32_t rows = kRows;
    const UpdateData update{view(live_), std::as_bytes(std::span(&rows, 1))};
    MutationInput input;
    input.plan = &builder_.plan;
    input.updates = {&update, 1};
    input.kernels = test_kernels();
    const std::vector<Edge> all = edges(builder_.plan);
    ASSERT_EQ(all.size(), edge_count);
    for (int repetition = 0; repetition < kRepetitions; ++repetition) {
      const RunResult whole = run_with_edge_dropped(input, nullptr);
      ASSERT_FALSE(whole.failed) << whole.output;
      ASSERT_FALSE(whole.reported) << whole.output;
      for (const Edge& edge : all) {
        // A report is proof; its absence is not, since ThreadSanitizer forgets accesses. A miss is tried again.
        RunResult result;
        for (int attempt = 0; attempt < 5 && !result.reported; ++attempt) {
          result = run_with_edge_dropped(input, &edge);
        }
        ASSERT_FALSE(result.failed) << result.output;
        EXPECT_TRUE(result.reported) << "repetition " << repetition << ": command " << edge.command
                                     << " without " << edge.dep << "\n"
                                     << result.output;
      }
    }
  }

  /// Workers that share tiles order all of a command's before what follows it, and each replay before the next.
  void expect_no_report_of_shared_tiles() {
    builder_.plan.arena_bytes = 8 * kBytes;
    builder_.derive_deps();
    const uint32_t rows = kRows;
    const UpdateData update{view(live_), std::as_bytes(std::span(&rows, 1))};
    MutationInput input;
    input.plan = &builder_.plan;
    input.updates = {&update, 1};
    input.kernels = test_kernels();
    for (const uint32_t workers : {2u, 3u}) {
      input.sharing_workers = workers;
      const RunResult whole = run_with_edge_dropped(input, nullptr);
      EXPECT_FALSE(whole.failed) << whole.output;
      EXPECT_FALSE(whole.reported) << whole.output;
    }
  }

  std::unique_ptr<Backend> device_ = make_null(test_kernels());
  const Allocation* live_ = device_->allocate({64, "live"});
  PlanBuilder builder_;
};

TEST_F(EdgeMutation, Chain) {
  command(kFill, {cells(Access::out, 0)});
  command(kCopy, {cells(Access::in, 0), cells(Access::out, 1)});
  command(kIncrement, {cells(Access::inout, 1)});
  command(kCopy, {cells(Access::in, 1), cells(Access::out, 2)});
  command(kFill, {cells(Access::out, 1)});  // write after read
  command(kFill, {cells(Access::out, 1)});  // write after write
  expect_each_edge_reported(5);
}

TEST_F(EdgeMutation, Diamond) {
  command(kFill, {cells(Access::out, 0)});
  command(kCopy, {cells(Access::in, 0), cells(Access::out, 1)}, true);
  command(kCopy, {cells(Access::in, 0), cells(Access::out, 2)});
  command(kAdd, {cells(Access::in, 1), cells(Access::in, 2), cells(Access::out, 3)});
  command(kIncrement, {cells(Access::inout, 0)});
  expect_each_edge_reported(6);
}

// The count itself is data: who writes it is ordered before and after who takes it as its number of rows.
TEST_F(EdgeMutation, LiveCount) {
  const Argument count = out(view(live_, 0, 4));
  PlanBuilder::Options one;
  one.constants.value = 3;
  builder_.add(kFill, {count}, one);
  command(kFill, {cells(Access::out, 0)}, true);
  builder_.add(kFill, {count}, one);
  expect_each_edge_reported(2);
}

TEST_F(EdgeMutation, Scratch) {
  PlanBuilder::Options options;
  options.launch = {kRows, 1, 1, sizeof(WorkerRecord)};
  options.scratch = inout(arena_view(4 * kBytes, sizeof(WorkerRecord)));
  builder_.add(kRecord, {cells(Access::inout, 0)}, options);
  builder_.add(kRecord, {cells(Access::inout, 1)}, options);
  expect_each_edge_reported(1);
}

TEST_F(EdgeMutation, TilesThatWorkersShareAreAllBeforeWhatFollows) {
  constexpr uint32_t kDelayUs = 100;
  command(kFill, {cells(Access::out, 0)}, false, kDelayUs);
  command(kCopy, {cells(Access::in, 0), cells(Access::out, 1)}, false, kDelayUs);
  command(kIncrement, {cells(Access::inout, 0)}, false, kDelayUs);
  command(kAdd, {cells(Access::in, 0), cells(Access::in, 1), cells(Access::out, 2)}, false, kDelayUs);
  expect_no_report_of_shared_tiles();
}

TEST_F(EdgeMutation, TilesOfALiveCountAreSharedToo) {
  constexpr uint32_t kDelayUs = 100;
  const Argument count = out(view(live_, 0, 4));
  PlanBuilder::Options one;
  one.constants.value = kRows;
  builder_.add(kFill, {count}, one);
  command(kFill, {cells(Access::out, 0)}, true, kDelayUs);
  command(kIncrement, {cells(Access::inout, 0)}, true, kDelayUs);
  builder_.add(kFill, {count}, one);
  expect_no_report_of_shared_tiles();
}

}  // namespace
}  // namespace refrain::backend::testing

// What only the CUDA backend has: memory that the host does not reach, programmatic edges, programs that run once.
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "refrain/core/error.h"
#include "tests/conformance/cuda_device.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr auto kLong = std::chrono::seconds(60);

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_under_test().empty()) GTEST_SKIP() << "REFRAIN_TEST_DEVICE names no GPU";
    open(false);
  }
  void open(bool full_edges) {
    device_.reset();
    device_ = cuda_device(full_edges);
  }
  const Allocation* cells(uint32_t count) { return device_->allocate({count * sizeof(uint32_t), "test"}); }
  std::vector<uint32_t> read(const Allocation* from) { return contents<uint32_t>(*device_, from); }
  bool run(const PlanData& plan, const ExecutableOptions& options = {},
           std::span<const UpdateData> updates = {}) {
    const auto program = device_->prepare(plan, options);
    return device_->wait(device_->submit({program.get(), updates, {}}), kLong);
  }

  std::unique_ptr<Backend> device_;
};

TEST_F(Cuda, MemoryOfTheDeviceIsImportedByItsAddress) {
  const Allocation* owned = cells(8);
  const Allocation* import = device_->allocate({.bytes = owned->bytes,
                                                .label = "import",
                                                .kind = MemoryKind::import_device,
                                                .device_address = owned->device_address});
  EXPECT_EQ(import->host, nullptr);
  PlanBuilder builder;
  builder.add(kFill, {out(view(import))}, {.launch = {8, 1, 1}, .constants = {5, 0, 0, 0}});
  ASSERT_TRUE(run(builder.plan));
  EXPECT_EQ(read(import), std::vector<uint32_t>(8, 5));
  device_->release(import);
  EXPECT_EQ(read(owned), std::vector<uint32_t>(8, 5)) << "it lives on with its owner";
}

TEST_F(Cuda, OutOfMemorySaysWhatIsFree) {
  try {
    device_->allocate({size_t{1} << 50, "too much"});
    FAIL();
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("1125899906842624 bytes wanted for 'too much'"), std::string::npos) << message;
    EXPECT_NE(message.find("bytes free"), std::string::npos) << message;
  }
  EXPECT_NE(cells(8), nullptr);
}

/// A chain and branches beside it, in which every command rests before it writes.
PlanBuilder random_plan(uint32_t seed, const std::vector<const Allocation*>& buffers, uint32_t rows,
                        uint32_t delay_us) {
  std::mt19937 random(seed);
  PlanBuilder builder;
  const auto at = [&](uint32_t index) { return view(buffers[index % buffers.size()]); };
  for (uint32_t i = 0; i < 120; ++i) {
    const uint32_t a = static_cast<uint32_t>(random()), b = a + 1 + static_cast<uint32_t>(random() % 3);
    const PlanBuilder::Options options{.launch = {rows, 1, 1},
                                       .constants = {static_cast<uint32_t>(random()), delay_us, i + 1, 0}};
    switch (random() % 4) {
      case 0:
        builder.add(kCopy, {in(at(a)), out(at(b))}, options);
        break;
      case 1:
        builder.add(kAdd, {in(at(a)), in(at(a + 4)), out(at(b))}, options);
        break;
      default:
        builder.add(kIncrement, {inout(at(a))}, options);
    }
  }
  builder.derive_deps();
  return builder;
}

TEST_F(Cuda, ProgrammaticEdgesFullEdgesAndNoGraphGiveTheSameBits) {
  constexpr uint32_t kRows = 700, kBuffers = 9;
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    std::vector<std::vector<uint32_t>> results;
    for (const bool full_edges : {true, false}) {
      open(full_edges);
      for (const bool once : {false, true}) {
        std::vector<const Allocation*> buffers;
        for (uint32_t i = 0; i < kBuffers; ++i) buffers.push_back(cells(kRows));
        const PlanBuilder builder = random_plan(seed, buffers, kRows, 20);
        for (int replay = 0; replay < 3; ++replay) ASSERT_TRUE(run(builder.plan, {.once = once}));
        std::vector<uint32_t> all;
        for (const Allocation* buffer : buffers) {
          const std::vector<uint32_t> values = read(buffer);
          all.insert(all.end(), values.begin(), values.end());
        }
        results.push_back(all);
        for (const Allocation* buffer : buffers) device_->release(buffer);
      }
    }
    for (const auto& result : results) EXPECT_EQ(result, results[0]) << "seed " << seed;
    EXPECT_NE(results[0], std::vector<uint32_t>(results[0].size(), 0));
  }
}

TEST_F(Cuda, UpdatesOfManySizesInFlight) {
  constexpr uint32_t kCount = 1 << 16;
  const Allocation* data = cells(kCount);
  const Allocation* sum = cells(kCount);
  PlanBuilder builder;
  builder.add(kAdd, {in(view(data)), in(view(sum)), out(view(sum))}, {.launch = {kCount, 1, 1}});
  const auto program = device_->prepare(builder.plan, {});
  std::vector<uint32_t> expected(kCount, 0), held(kCount, 0);
  Point last;
  for (uint32_t round = 1; round <= 200; ++round) {
    const uint32_t first = round * 37 % 1000, size = round % 7 == 0 ? kCount - first : round * 13;
    const std::vector<uint32_t> values(size, round);
    const UpdateData update{view(data, first * 4, size * 4), std::as_bytes(std::span(values))};
    last = device_->submit({program.get(), {&update, 1}, {}});
    std::ranges::copy(values, held.begin() + first);
    for (uint32_t i = 0; i < kCount; ++i) expected[i] += held[i];
  }
  ASSERT_TRUE(device_->wait(last, kLong));
  EXPECT_EQ(read(sum), expected);
}

TEST_F(Cuda, AnEmptyQueueOfWorkReturnsMemory) {
  const size_t before = device_->memory().used_bytes;
  const Allocation* memory = cells(1 << 20);
  EXPECT_EQ(device_->memory().used_bytes, before + (size_t{4} << 20));
  device_->release(memory);
  EXPECT_EQ(device_->memory().used_bytes, before);
}

}  // namespace
}  // namespace refrain::backend::testing

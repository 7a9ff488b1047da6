// Loading the embedded model: what is told meanwhile, and that it ends when the one who is told wants it to.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "refrain/format/model_folder.h"
#include "tests/model/tales.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

TEST(Loading, TellsHowFarItIsAndEndsWhenItIsTold) {
  const Device device = Device::open("cpu");
  std::vector<std::pair<uint64_t, uint64_t>> calls;
  model::LoadOptions options;
  options.progress = [&](uint64_t done_bytes, uint64_t total_bytes) {
    calls.emplace_back(done_bytes, total_bytes);
    return true;
  };
  const model::Model model = model::Model::load(device, kTales, options);
  const auto folder = format::ModelFolder::open(kTales);
  const auto all = folder.totals();
  const auto weights = std::ranges::count_if(folder.tensor_names(), [](const std::string& name) {
    return !name.ends_with(".scales") && !name.ends_with(".biases");
  });
  EXPECT_EQ(model.weights().weights, static_cast<size_t>(weights));
  EXPECT_GE(model.weights().bytes, all.bytes);
  EXPECT_EQ(model.weights().in_place_bytes, 0u) << "quantized and widened, none lies as kernels read it";
  EXPECT_GE(device.memory().used_bytes, model.weights().bytes);
  EXPECT_GE(calls.size(), model.weights().weights);
  uint64_t before = 0;
  for (const auto& [done_bytes, total_bytes] : calls) {
    EXPECT_GE(done_bytes, before);
    EXPECT_EQ(total_bytes, all.bytes);
    before = done_bytes;
  }
  EXPECT_EQ(calls.back().first, all.bytes);
  const size_t used_bytes = device.memory().used_bytes;

  for (const size_t last : {size_t{1}, size_t{3}, calls.size()}) {
    size_t told = 0;
    options.progress = [&](uint64_t done_bytes, uint64_t) {
      EXPECT_EQ(done_bytes, calls[told].first);
      return ++told != last;
    };
    EXPECT_EQ(refusal<model::Cancelled>([&] { (void)model::Model::load(device, kTales, options); }),
              "loading was cancelled");
    EXPECT_EQ(told, last);
  }
  // What was loaded of it is gone.
  EXPECT_EQ(device.memory().used_bytes, used_bytes);
}

}  // namespace
}  // namespace refrain::test

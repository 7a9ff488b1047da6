// An encoder and a registry for which memory runs out: whichever allocation fails, the call that threw has
// left nothing, so that the same call again gives what there would have been. A program of its own, since it
// replaces operator new.
#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "tests/counted_new.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

/// A recording as text: all that does not depend on where things lie.
std::string text_of(const ComputeGraph& graph) {
  std::string text = "resources " + std::to_string(graph.resources.size()) + ", constants " +
                     std::to_string(graph.constants.size()) + ", bindings " +
                     std::to_string(graph.bindings.size()) + ", infos " + std::to_string(graph.infos.size()) +
                     ", temps " + std::to_string(graph.temps.size()) + ", '" + graph.labels[0] + "'\n";
  for (const graph::Command& command : graph.commands) {
    text += command.fence() ? std::string("fence") : std::string(command.op->name);
    text += " '" + graph.labels[command.label] + "'";
    for (uint32_t b = 0; b < command.bindings.count; ++b) {
      const graph::Binding& binding = graph.bindings[command.bindings.first + b];
      const backend::ArgumentInfo& info = graph.infos[binding.info];
      text += ' ' + std::to_string(binding.temp) + ':' + std::to_string(binding.view.offset_bytes) + '+' +
              std::to_string(binding.view.bytes) + to_string(info.shape);
    }
    for (uint32_t c = 0; c < command.constants.count; ++c)
      text += ',' + std::to_string(static_cast<int>(graph.constants[command.constants.first + c]));
    text += '\n';
  }
  return text;
}

TEST(ComputeGraph, ClearLeavesNothing) {
  Device device = null_device();
  const Buffer buffer = device.buffer(DType::u32, {8, 4});
  CommandEncoder encoder = device.encoder();
  const Temp temp = encoder.temp(DType::u32, {8, 4});
  dispatch(encoder, kMix, std::array{Operand(buffer), Operand(), Operand(temp)}, MixConstants{1, 32, 0, 32});
  ComputeGraph graph = encoder.finish("a name");
  graph.members.emplace_back();
  EXPECT_NE(graph.owner, 0u);
  clear(graph);
  EXPECT_TRUE(graph.commands.empty() && graph.members.empty() && graph.bindings.empty() &&
              graph.infos.empty() && graph.temps.empty() && graph.constants.empty() && graph.labels.empty() &&
              graph.resources.empty());
  EXPECT_EQ(graph.owner, 0u);
}

class EncoderMemory : public testing::Test {
 protected:
  EncoderMemory() {
    for (int i = 0; i < 40; ++i) buffers_.push_back(device_.buffer(DType::u32, {8, 4}));
  }

  using Call = std::function<void()>;

  /// The calls of a recording: temps, dispatches of ever other buffers, labels within scopes, a fence.
  std::vector<Call> calls() {
    const auto mix = [&](size_t a, const Temp& b, size_t output) {
      dispatch(*encoder_, kMix, std::array{Operand(buffers_[a]), Operand(b), Operand(buffers_[output])},
               MixConstants{static_cast<uint32_t>(a), 32, 32, 32});
    };
    std::vector<Call> list;
    list.push_back([&] { encoder_.emplace(device_.encoder()); });
    list.push_back([&] { temp_ = encoder_->temp(DType::u32, {8, 4}, buffers_[39].view(DType::u32, {1})); });
    list.push_back([&] {
      const Buffer live = buffers_[38].with_live_rows(buffers_[39].view(DType::u32, {1}));
      dispatch(*encoder_, kRows, std::array{Operand(live), Operand(temp_)}, MixConstants{});
    });
    list.push_back([&] { outer_.emplace(encoder_->scope("the outer scope of the recording")); });
    for (size_t i = 0; i < 18; ++i) {
      list.push_back([&, mix, i] { mix(i, temp_, 18 + i); });
      if (i == 6) list.push_back([&] { encoder_->label("a label that is too long to be kept in place"); });
      if (i == 9) list.push_back([&] { inner_.emplace(encoder_->scope("and a scope within the scope")); });
      if (i == 12) list.push_back([&] { inner_.reset(); });
      if (i == 13) list.push_back([&] { encoder_->barrier(); });
      if (i == 14) list.push_back([&] { encoder_->label(""); });
    }
    list.push_back([&] { outer_.reset(); });
    list.push_back([&, mix] { mix(36, temp_, 37); });
    list.push_back([&] { graph_ = encoder_->finish("a name that is too long to be kept in place"); });
    return list;
  }

  Device device_ = null_device();
  std::vector<Buffer> buffers_;
  std::optional<CommandEncoder> encoder_;
  std::optional<CommandEncoder::Scope> outer_, inner_;
  Temp temp_;
  ComputeGraph graph_;
};

TEST_F(EncoderMemory, ACallThatFailsLeavesNothing) {
  if (!test::kCountsHeap) GTEST_SKIP();
  for (const Call& call : calls()) call();
  const std::string expected = text_of(graph_);
  const std::vector<Call> list = calls();
  uint64_t failures = 0;
  bool failed = true;
  for (uint64_t n = 1; failed; ++n) {
    failed = false;
    // No storage of an earlier recording, which would have room for this one.
    device_ = null_device();
    buffers_.clear();
    for (int i = 0; i < 40; ++i) buffers_.push_back(device_.buffer(DType::u32, {8, 4}));
    test::heap_refusal = test::heap_allocations + n;
    for (const Call& call : list) {
      try {
        call();
      } catch (const std::bad_alloc&) {
        ASSERT_FALSE(failed) << "the second time there was memory";
        failed = true;
        ++failures;
        call();
      }
    }
    test::heap_refusal = 0;
    ASSERT_EQ(text_of(graph_), expected) << "allocation " << n;
  }
  EXPECT_GT(failures, 40u);
}

TEST_F(EncoderMemory, ACommitThatFailsSpendsAtMostTheRecording) {
  if (!test::kCountsHeap) GTEST_SKIP();
  const auto record = [&] {
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kMix, std::array{Operand(buffers_[0]), Operand(), Operand(buffers_[1])},
             MixConstants{1, 32, 0, 32});
    return encoder;
  };
  uint64_t recorded = 0, spent = 0;
  bool failed = true;
  for (uint64_t n = 1; failed; ++n) {
    failed = false;
    CommandEncoder encoder = record();
    const uint64_t submissions = device_.counters().submissions;
    test::heap_refusal = test::heap_allocations + n;
    try {
      encoder.commit({.label = "a name that is too long to be kept in place"});
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    test::heap_refusal = 0;
    if (!failed) break;
    EXPECT_EQ(device_.counters().submissions, submissions) << "allocation " << n;
    if (encoder.state() == EncoderState::recording) {
      ++recorded;
      encoder.commit();
    } else {
      ASSERT_EQ(encoder.state(), EncoderState::failed) << "allocation " << n;
      ++spent;
      record().commit();
    }
    EXPECT_EQ(device_.counters().submissions, submissions + 1);
  }
  EXPECT_GT(recorded, 0u);
  EXPECT_GT(spent, 10u);
}

TEST(RegistryMemory, AKernelIsAddedOrNot) {
  if (!test::kCountsHeap) GTEST_SKIP();
  UserKernel kernel;
  kernel.name = "a name that is too long to be kept in place";
  kernel.numerics = "a class that is too long to be kept in place";
  kernel.op = &kMix;
  kernel.entry = kRunMix;
  const std::unique_ptr<backend::Backend> backend = backend::make_null(kKernels);
  bool failed = true;
  uint64_t failures = 0;
  for (uint64_t n = 1; failed; ++n) {
    failed = false;
    KernelRegistry registry(*backend);
    test::heap_refusal = test::heap_allocations + n;
    try {
      registry.add(kernel);
    } catch (const std::bad_alloc&) {
      failed = true;
      ++failures;
    }
    test::heap_refusal = 0;
    if (failed) {
      ASSERT_EQ(registry.table()->size(), std::size(kKernels)) << "allocation " << n;
      registry.add(kernel);
    }
    ASSERT_EQ(registry.table()->size(), std::size(kKernels) + 1);
    EXPECT_EQ(registry.table()->at(0).name, kernel.name);
    EXPECT_EQ(registry.table()->at(1).name, kKernels[0].name);
  }
  EXPECT_GT(failures, 3u);
}

}  // namespace
}  // namespace refrain::null_tests

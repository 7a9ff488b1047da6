// Recording: what is written down, and every misuse of encoders, buffers and temps.
#include "refrain/device/encoder.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <functional>
#include <limits>

#include "refrain/format/plain.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using Action = std::function<void()>;

using test::refusal;

class Encoder : public testing::Test {
 protected:
  void mix(Operand a, Operand b, Operand output) {
    dispatch(encoder_, kMix, std::array{a, b, output}, MixConstants{1, 1, 1, 1});
  }
  void pair(Operand input, Operand status, Operand first, Operand second) {
    encoder_.dispatch({&kPair, std::array{input, status, first, second}, {}});
  }
  Buffer buffer(Shape shape) { return device_.buffer(DType::u32, shape); }
  /// One that lies in a_.
  Weight weight(Shape shape) {
    auto state = std::make_shared<Weight::State>();
    state->info.format = &format::plain(DType::u32);
    state->info.shape = shape;
    state->memory = a_.memory();
    state->bytes = a_.bytes();
    return Weight(std::move(state));
  }

  Device device_ = null_device();
  Device other_ = null_device();
  CommandEncoder encoder_ = device_.encoder();
  Buffer a_ = buffer({8, 4}), b_ = buffer({8, 4}), count_ = buffer({4});
};

TEST_F(Encoder, TheHostSeesTheViewAndNothingElse) {
  const std::span<uint32_t> whole = a_.span<uint32_t>();
  const std::span<uint32_t> part = a_.slice(2, 3).span<uint32_t>();
  EXPECT_EQ(part.data(), whole.data() + 8);
  EXPECT_EQ(part.size(), 12u);
  EXPECT_EQ(a_.view(DType::u8, {5}, 12).host_span().data(), std::as_writable_bytes(whole).data() + 12);
  EXPECT_EQ(a_.view(DType::u8, {5}, 12).host_span().size(), 5u);
}

TEST_F(Encoder, WritesDownCommandsBindingsAndConstants) {
  const Temp t = encoder_.temp(DType::u32, {8, 4});
  mix(a_, {}, t);
  encoder_.barrier();
  encoder_.label("later");
  mix(t, a_, b_.slice(2, 3));
  const ComputeGraph graph = encoder_.finish();

  ASSERT_EQ(graph.commands.size(), 3u);
  EXPECT_EQ(graph.commands[0].op, &kMix);
  EXPECT_EQ(graph.commands[1].op, nullptr);
  EXPECT_EQ(graph.labels, (std::vector<std::string>{"", "later"}));
  EXPECT_EQ(graph.commands[0].label, 0u);
  EXPECT_EQ(graph.commands[2].label, 1u);
  for (const graph::Command& command : graph.commands) EXPECT_EQ(command.constants.first % 16, 0u);

  const graph::Binding* first = &graph.bindings[graph.commands[0].bindings.first];
  EXPECT_EQ(first[0].view.allocation, a_.device_view().allocation);
  EXPECT_EQ(first[0].view.bytes, 128u);
  EXPECT_EQ(first[0].access, Access::in);
  EXPECT_FALSE(first[1].bound());
  EXPECT_EQ(first[2].temp, 0u);
  EXPECT_EQ(first[2].access, Access::out);
  const graph::Binding* last = &graph.bindings[graph.commands[2].bindings.first];
  EXPECT_EQ(last[0].temp, 0u);
  EXPECT_EQ(last[2].view.offset_bytes, 32u);
  EXPECT_EQ(last[2].view.bytes, 48u);
  EXPECT_EQ(graph.infos[last[2].info].shape, (Shape{3, 4}));
  EXPECT_EQ(first[0].info, first[2].info) << "alike, hence shared";
  EXPECT_FALSE(graph.infos[first[1].info].bound);
  EXPECT_FALSE(graph.commands[0].live);

  std::vector<backend::ArgumentInfo> infos;
  const OpCall call = graph::op_call(graph, graph.commands[2], infos);
  EXPECT_EQ(call.args.size(), 3u);
  EXPECT_EQ(call.constants_as<MixConstants>().salt, 1u);
}

// By the encoder, for ops whose schema has no check of their own.
TEST_F(Encoder, RowArgumentsHaveEquallyManyRows) {
  const Buffer memory = device_.buffer(DType::u32, {16}), other = device_.buffer(DType::u32, {16});
  const auto rows = [&](const Shape& input, const Shape& output) {
    return refusal([&] {
      dispatch(encoder_, kRows,
               std::array{Operand(memory.view(DType::u32, input)), Operand(other.view(DType::u32, output))},
               MixConstants{});
    });
  };
  EXPECT_EQ(rows({4, 4}, {2, 8}), "[rows] output: expected 4 rows as a has, got [2, 8]");
  EXPECT_EQ(rows({4, 4}, {5}), "[rows] output: expected 4 rows as a has, got [5]");
  EXPECT_EQ(rows({}, {4}), "[rows] a: expected rows, got []");
  EXPECT_EQ(rows({4, 4}, {4}), "nothing was thrown") << "columns are the op's business";
  const Temp temp = encoder_.temp(DType::u32, {3, 4});
  EXPECT_EQ(refusal([&] {
              dispatch(encoder_, kFour,
                       std::array{Operand(memory.view(DType::u32, {4, 4})),
                                  Operand(other.view(DType::u32, {2})), Operand(), Operand(temp)},
                       MixConstants{});
            }),
            "[four] residual: expected a buffer, temp or weight, got nothing");
  EXPECT_EQ(encoder_.finish().commands.size(), 1u);
}

TEST_F(Encoder, ConstantsAreAlignedWhateverTheirSize) {
  static constexpr OpSchema kOdd{"odd", kUpdateArgs, 5, nullptr};
  const std::array<std::byte, 5> constants{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                           std::byte{5}};
  for (int i = 0; i < 3; ++i) encoder_.dispatch({&kOdd, std::array{Operand(a_), Operand(b_)}, constants});
  const ComputeGraph graph = encoder_.finish();
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(graph.commands[i].constants.first, i * 16);
    EXPECT_EQ(graph.constants[graph.commands[i].constants.first + 4], std::byte{5});
  }
}

// Where constants are, plans say in 32 bits.
TEST_F(Encoder, ConstantsOfFourGigabytesAreRefused) {
  constexpr size_t kMany = UINT32_MAX - 8;
  void* zeros = mmap(nullptr, kMany, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(zeros, MAP_FAILED);
  const OpSchema few{.name = "few", .args = {}, .constants_bytes = 16};
  const OpSchema many{.name = "many", .args = {}, .constants_bytes = kMany};
  const std::span constants(static_cast<const std::byte*>(zeros), kMany);
  encoder_.dispatch({&few, {}, constants.first(16)});
  EXPECT_EQ(
      refusal([&] {
        encoder_.dispatch({&many, {}, constants});
      }),
      "[many] constants: expected less than 4 GiB in one recording, and as many arguments, got 4294967303 "
      "bytes and 0 arguments");
  encoder_.dispatch({&few, {}, constants.first(16)});
  EXPECT_EQ(encoder_.finish().constants.size(), 32u);
  munmap(zeros, kMany);
}

TEST_F(Encoder, TheLiveCountIsTheLastBinding) {
  const Buffer rows = count_.slice(1, 1), input = a_.with_live_rows(rows);
  const Temp t = encoder_.temp(DType::u32, {8, 4}, rows);
  dispatch(encoder_, kRows, std::array{Operand(input), Operand(t)}, MixConstants{});
  const ComputeGraph graph = encoder_.finish();
  const graph::Command& command = graph.commands[0];
  ASSERT_TRUE(command.live);
  ASSERT_EQ(command.bindings.count, 3u);
  const graph::Binding& live = graph.bindings[command.bindings.first + 2];
  EXPECT_EQ(live.access, Access::in);
  EXPECT_EQ(live.view.allocation, count_.device_view().allocation);
  EXPECT_EQ(live.view.offset_bytes, 4u);
  EXPECT_EQ(live.view.bytes, 4u);
}

TEST_F(Encoder, ARefusedDispatchLeavesNothing) {
  mix(a_, {}, b_);
  const Buffer fresh = buffer({4});
  const Buffer half = fresh.view(DType::u8, {16});
  const std::weak_ptr<const AllocationHandle> watched = fresh.memory();
  const Temp t = encoder_.temp(DType::u32, {8, 4});
  const Temp unwritten = encoder_.temp(DType::u32, {8, 4});
  EXPECT_EQ(refusal([&] { mix(fresh, half, t); }), "[mix] b: expected u32, got u8");
  EXPECT_EQ(refusal([&] { mix(fresh, unwritten, t); }),
            "[mix] b: expected a value, got a temp that no command has written");
  EXPECT_EQ(refusal([&] { mix(t, {}, b_); }),
            "[mix] a: expected a value, got a temp that no command has written")
      << "a refused dispatch wrote it";
  mix(fresh, {}, t);  // what a refusal let go of is kept by the next one
  const ComputeGraph graph = encoder_.finish();
  EXPECT_EQ(device_.counters().dispatches_recorded, 2u);
  EXPECT_EQ(graph.commands.size(), 2u);
  EXPECT_EQ(graph.bindings.size(), 6u);
  EXPECT_EQ(graph.constants.size(), 32u);
  EXPECT_EQ(std::ranges::count(graph.resources, std::shared_ptr<const void>(fresh.memory())), 1);
  EXPECT_EQ(graph.resources.size(), 3u);
}

TEST_F(Encoder, ARefusedDispatchKeepsNoMemory) {
  std::weak_ptr<const AllocationHandle> watched;
  {
    const Buffer fresh = buffer({4});
    watched = fresh.memory();
    EXPECT_NE(refusal([&] { mix(fresh, {}, fresh.slice(0, 2)); }), "nothing was thrown");
  }
  EXPECT_TRUE(watched.expired());
}

TEST_F(Encoder, MemoryLivesAsLongAsTheGraph) {
  std::weak_ptr<const AllocationHandle> bound, live;
  {
    const Buffer fresh = buffer({8, 4}), rows = buffer({1});
    bound = fresh.memory();
    live = rows.memory();
    const Buffer input = fresh.with_live_rows(rows), output = b_.with_live_rows(rows);
    dispatch(encoder_, kRows, std::array{Operand(input), Operand(output)}, MixConstants{});
  }
  EXPECT_FALSE(bound.expired());
  {
    auto [plan, report] = device_.plan(encoder_.finish());
    EXPECT_FALSE(bound.expired());
    Program program = device_.prepare(plan);
    plan = {};
    EXPECT_FALSE(bound.expired());
    EXPECT_FALSE(live.expired());
  }
  EXPECT_TRUE(bound.expired());
  EXPECT_TRUE(live.expired());
}

TEST_F(Encoder, DroppingARecordingDropsItsMemory) {
  std::weak_ptr<const AllocationHandle> bound;
  {
    CommandEncoder encoder = device_.encoder();
    const Buffer fresh = buffer({4});
    bound = fresh.memory();
    dispatch(encoder, kMix, std::array{Operand(fresh), Operand(), Operand(b_)}, MixConstants{1, 1, 1, 1});
  }
  EXPECT_TRUE(bound.expired());
}

TEST_F(Encoder, ManyBuffersAreAllKept) {
  // More than the table of recent ones holds, in an order that defeats it.
  std::vector<std::weak_ptr<const AllocationHandle>> watched;
  {
    std::vector<Buffer> buffers;
    for (int i = 0; i < 300; ++i) watched.push_back(buffers.emplace_back(buffer({4})).memory());
    for (int round = 0; round < 2; ++round) {
      for (const Buffer& each : buffers) mix(each, {}, b_);
    }
  }
  for (const auto& each : watched) EXPECT_FALSE(each.expired());
}

TEST_F(Encoder, WhatIsKeptIsKeptOnce) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < 300; ++i) buffers.push_back(buffer({4}));
  for (int round = 0; round < 3; ++round) {
    for (const Buffer& each : buffers) mix(each, {}, b_);
    // A refusal takes back its own only.
    EXPECT_NE(refusal([&] { mix(buffer({4}), {}, Buffer()); }), "nothing was thrown");
  }
  EXPECT_EQ(encoder_.finish().resources.size(), 301u);
}

TEST_F(Encoder, ARefusedWeightIsForgotten) {
  // Another may come to lie at its address, with another shape: what was known of the first is gone with it.
  const Temp unwritten = encoder_.temp(DType::u32, {4});
  EXPECT_NE(refusal([&] { mix(weight({32}), unwritten, b_); }), "nothing was thrown");
  mix(weight({2, 16}), {}, b_);
  const ComputeGraph graph = encoder_.finish();
  EXPECT_EQ(graph.infos[graph.bindings[0].info].shape, (Shape{2, 16}));
  EXPECT_EQ(graph.infos.size(), 5u) << "nothing bound, a live count, the temp, the weight, the output";
  EXPECT_EQ(graph.resources.size(), 2u);
}

TEST_F(Encoder, WeightsAreSealedAndNothingElse) {
  const Temp temp = encoder_.temp(DType::u32, {8, 4});
  mix(weight({8, 4}), b_, temp);
  mix(temp, {}, b_);
  const Plan plan = device_.plan(encoder_.finish()).first;
  const auto& args = plan.data().args;
  ASSERT_EQ(args.size(), 6u);
  for (size_t i = 0; i < args.size(); ++i) EXPECT_EQ(args[i].sealed, i == 0) << i;
}

TEST_F(Encoder, Labels) {
  encoder_.label("one");
  mix(a_, {}, b_);
  encoder_.label("one");
  mix(a_, {}, b_);
  encoder_.barrier();
  encoder_.label("");
  mix(a_, {}, b_);
  const ComputeGraph graph = encoder_.finish();
  EXPECT_EQ(graph.labels, (std::vector<std::string>{"", "one"}));
  EXPECT_EQ(graph.commands[0].label, 1u);
  EXPECT_EQ(graph.commands[1].label, 1u);
  EXPECT_EQ(graph.commands[2].label, 1u) << "a fence as well";
  EXPECT_EQ(graph.commands[3].label, 0u);
}

TEST_F(Encoder, EveryCallInEveryState) {
  static constexpr OpSchema kUnknown{"unknown", kUpdateArgs, 0, nullptr};
  const Buffer rows = count_.slice(0, 1);
  const std::array operands{Operand(a_), Operand(), Operand(b_)};
  const MixConstants constants{1, 1, 1, 1};
  const Dispatch mix_dispatch{&kMix, operands, std::as_bytes(std::span(&constants, 1))};
  struct State {
    EncoderState state;
    const char* words;
    std::function<CommandEncoder(CommandEncoder&)> reach;  // leaves the encoder in the state
  };
  const State states[] = {
      {EncoderState::recording, "", [&](CommandEncoder&) { return device_.encoder(); }},
      {EncoderState::committed, "was committed",
       [&](CommandEncoder& e) { return e.commit(), device_.encoder(); }},
      {EncoderState::finished, "was finished",
       [&](CommandEncoder& e) { return e.finish(), device_.encoder(); }},
      {EncoderState::failed, "failed to commit",
       [&](CommandEncoder& e) {
         e.dispatch({&kUnknown, std::array{Operand(a_), Operand(b_)}, {}});
         EXPECT_NE(refusal([&] { e.commit(); }), "nothing was thrown");
         return device_.encoder();
       }},
      {EncoderState::moved_from, "was moved from", [](CommandEncoder& e) { return std::move(e); }},
      {EncoderState::moved_from, "was moved from",
       [&](CommandEncoder& e) {
         CommandEncoder other = device_.encoder();
         other = std::move(e);
         return other;
       }},
  };
  const std::pair<const char*, std::function<void(CommandEncoder&)>> calls[] = {
      {"temp", [](CommandEncoder& e) { e.temp(DType::u32, {1}); }},
      {"temp", [&](CommandEncoder& e) { e.temp(DType::u32, {1}, rows); }},
      {"dispatch", [&](CommandEncoder& e) { e.dispatch(mix_dispatch); }},
      {"barrier", [](CommandEncoder& e) { e.barrier(); }},
      {"label", [](CommandEncoder& e) { e.label("x"); }},
      {"scope", [](CommandEncoder& e) { (void)e.scope("x"); }},
      {"finish", [](CommandEncoder& e) { e.finish(); }},
      {"commit", [](CommandEncoder& e) { e.commit(); }},
      {"commit", [](CommandEncoder& e) { e.commit({.label = "x", .queue = 9}); }},
  };
  for (const State& state : states) {
    for (const auto& [name, call] : calls) {
      SCOPED_TRACE(std::string(name) + " after it " + state.words);
      CommandEncoder encoder = device_.encoder();
      encoder.dispatch(mix_dispatch);
      const CommandEncoder keep = state.reach(encoder);
      ASSERT_EQ(encoder.state(), state.state);  // NOLINT: asked of a moved-from encoder on purpose
      const uint64_t submissions = device_.counters().submissions;
      const std::string said = refusal([&, &made = call] { made(encoder); });
      if (state.state == EncoderState::recording) {
        EXPECT_TRUE(said == "nothing was thrown" ||
                    said == "[encoder] commit: queue: expected less than 4, got 9")
            << said;
      } else {
        EXPECT_EQ(said, std::string("[encoder] ") + name + ": expected one that records, got one that " +
                            state.words + "; make a new encoder");
        EXPECT_EQ(encoder.state(), state.state);
        EXPECT_EQ(device_.counters().submissions, submissions);
      }
    }
  }
}

TEST_F(Encoder, ARefusedOptionLosesNothing) {
  mix(a_, {}, b_);
  EXPECT_NE(refusal([&] { encoder_.commit({.label = "x", .queue = 9}); }), "nothing was thrown");
  EXPECT_NE(refusal([&] { encoder_.commit({.label = "x", .queue = 0, .waits = {Point{}}, .plan = {}}); }),
            "nothing was thrown");
  EXPECT_EQ(encoder_.state(), EncoderState::recording);
  EXPECT_EQ(encoder_.finish("kept").commands.size(), 1u);
}

TEST_F(Encoder, ScopesNestAndEnd) {
  std::vector<std::string> expected;
  const auto record = [&](const char* label) {
    mix(a_, {}, b_);
    expected.emplace_back(label);
  };
  record("");
  {
    const auto layer = encoder_.scope("layer 3");
    record("layer 3");
    encoder_.label("norm");
    record("layer 3 / norm");
    {
      const auto attention = encoder_.scope("attention");
      record("layer 3 / attention");
      encoder_.label("q");
      record("layer 3 / attention / q");
      encoder_.label("");
      record("layer 3 / attention");
    }
    record("layer 3 / norm");
  }
  record("");
  encoder_.label("head");
  record("head");
  { const auto empty = encoder_.scope("never used"); }
  record("head");
  EXPECT_EQ(refusal([&] { (void)encoder_.scope(""); }), "[encoder] scope: expected a label, got none");
  const ComputeGraph graph = encoder_.finish();
  ASSERT_EQ(graph.commands.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(graph.labels[graph.commands[i].label], expected[i]) << i;
}

TEST_F(Encoder, ScopesMayEndInAnyOrderAndOutliveTheEncoder) {
  auto outer = std::make_unique<CommandEncoder::Scope>(encoder_.scope("outer"));
  auto inner = std::make_unique<CommandEncoder::Scope>(encoder_.scope("inner"));
  outer.reset();  // ends both
  mix(a_, {}, b_);
  const auto next = encoder_.scope("next");
  const auto deeper = encoder_.scope("deeper");
  inner.reset();  // finds another in its place
  mix(a_, {}, b_);
  CommandEncoder moved = std::move(encoder_);
  const auto last = moved.scope("last");
  dispatch(moved, kMix, std::array{Operand(a_), Operand(), Operand(b_)}, MixConstants{1, 1, 1, 1});
  const ComputeGraph graph = moved.finish();
  EXPECT_EQ(graph.labels[graph.commands[0].label], "");
  EXPECT_EQ(graph.labels[graph.commands[1].label], "next / deeper");
  EXPECT_EQ(graph.labels[graph.commands[2].label], "next / deeper / last");
  encoder_ = device_.encoder();
}

TEST_F(Encoder, DroppedCommandsAreToldToTheLog) {
  std::vector<std::string> told;
  DeviceOptions options;
  options.log = [&](LogLevel, std::string_view message) { told.emplace_back(message); };
  Device device(backend::make_null(kKernels), {}, options);
  const Buffer a = device.buffer(DType::u32, {4});
  const auto record = [&](CommandEncoder& encoder) {
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 4, 0, 4});
  };
  { CommandEncoder empty = device.encoder(); }
  {
    CommandEncoder committed = device.encoder(), finished = device.encoder();
    record(committed);
    record(finished);
    committed.commit();
    finished.finish();
  }
  EXPECT_TRUE(told.empty());
  {
    CommandEncoder dropped = device.encoder();
    record(dropped);
  }
  const std::vector<std::string> expected{
      "[encoder] dropped with 1 commands that were neither committed nor finished"};
  EXPECT_EQ(told, expected);
  CommandEncoder overwritten = device.encoder();
  record(overwritten);
  overwritten = device.encoder();
  EXPECT_EQ(told.size(), 2u);
}

TEST_F(Encoder, ARefusedPlanSpendsTheRecordingOnly) {
  static constexpr OpSchema kUnknown{"unknown", kUpdateArgs, 0, nullptr};
  encoder_.dispatch({&kUnknown, std::array{Operand(a_), Operand(b_)}, {}});
  EXPECT_NE(refusal([&] { encoder_.commit(); }).find("[unknown] device null: no kernel"), std::string::npos);
  encoder_ = device_.encoder();
  mix(a_, {}, b_);
  EXPECT_TRUE(device_.reached(encoder_.commit()));
}

constexpr std::array<ArgumentSpec, 33> kWideArgs{};
constexpr OpSchema kWide{"wide", kWideArgs, 0, nullptr};
constexpr ArgumentSpec kStatusRowsArgs[] = {{"a", Access::in, true}, {"status", Access::accumulate}};
constexpr OpSchema kStatusRows{"status_rows", kStatusRowsArgs, 0, nullptr};

TEST_F(Encoder, MisuseOfDispatch) {
  const Buffer foreign = other_.buffer(DType::u32, {8, 4});
  CommandEncoder second = device_.encoder(), of_other = other_.encoder();
  const Temp of_second = second.temp(DType::u32, {8, 4}), of_foreign = of_other.temp(DType::u32, {8, 4});
  const Temp own = encoder_.temp(DType::u32, {8, 4}), unwritten = encoder_.temp(DType::u32, {8, 4});
  mix(a_, {}, own);
  const Buffer zero = a_.slice(3, 0);
  const Buffer live_one = a_.with_live_rows(count_.slice(0, 1)),
               live_two = b_.with_live_rows(count_.slice(1, 1));
  const Buffer over_count = count_.view(DType::u32, {1, 4}).with_live_rows(count_.slice(0, 1));
  const Buffer one_row = a_.slice(0, 1).with_live_rows(count_.slice(0, 1));
  const auto rows = [&](Operand a, Operand out) {
    dispatch(encoder_, kRows, std::array{a, out}, MixConstants{});
  };
  const std::pair<Action, const char*> cases[] = {
      {[&] { encoder_.dispatch({}); }, "[encoder] dispatch: expected an op, got none"},
      {[&] {
         encoder_.dispatch({&kPair, {}, {}});
       },
       "[pair] arguments: expected 4, got 0"},
      {[&] {
         encoder_.dispatch({&kMix, std::array{Operand(a_), Operand(), Operand(b_)}, {}});
       },
       "[mix] constants: expected 16 bytes, got 0"},
      {[&] { mix({}, {}, b_); }, "[mix] a: expected a buffer, temp or weight, got nothing"},
      {[&] { mix(Buffer(), {}, b_); }, "[mix] a: expected a buffer, temp or weight, got nothing"},
      {[&] { mix(Temp(), {}, b_); }, "[mix] a: expected a buffer, temp or weight, got nothing"},
      {[&] { mix(Weight(), {}, b_); }, "[mix] a: expected a buffer, temp or weight, got nothing"},
      {[&] { mix(a_, {}, foreign); }, "[mix] output: expected a buffer of this device, got another device's"},
      {[&] { mix(of_second, {}, b_); }, "[mix] a: expected a temp of this recording"},
      {[&] { mix(a_, {}, of_foreign); }, "[mix] output: expected a temp of this recording"},
      {[&] { mix(unwritten, {}, b_); }, "[mix] a: expected a value, got a temp that no command has written"},
      {[&] { mix(unwritten, {}, unwritten); },
       "[mix] a: expected a value, got a temp that no command has written"},
      {[&] {
         dispatch(encoder_, kUpdate, std::array{Operand(a_), Operand(unwritten)}, MixConstants{});
       },
       "[update] target: expected a value, got a temp that no command has written"},
      {[&] { mix(zero, {}, b_); }, "[mix] a: expected elements, got [0, 4]"},
      {[&] { pair(a_, own, b_, {}); }, "[pair] status: expected memory for status words, got a temp"},
      {[&] { mix(a_, {}, a_.slice(1, 2)); },
       "[mix] output: shares bytes with a; expected separate memory or exactly the same"},
      {[&] { mix(b_, a_, a_); }, "[mix] output: shares bytes with b; expected separate memory"},
      {[&] { mix(a_, own, own); }, "[mix] output: shares bytes with b; expected separate memory"},
      {[&] { pair(b_, {}, a_.slice(0, 2), a_.slice(1, 2)); },
       "[pair] first: shares bytes with second; expected separate memory"},
      {[&] { pair(b_, {}, own, own); }, "[pair] first: shares bytes with second; expected separate memory"},
      {[&] { pair(a_, b_.slice(1, 1), b_, {}); },
       "[pair] status: shares bytes with first; expected separate memory"},
      {[&] { pair(a_, a_.slice(1, 1), b_, {}); },
       "[pair] status: shares bytes with input; expected separate memory"},
      {[&] {
         encoder_.dispatch({&kWide, std::vector<Operand>(33, Operand(a_)), {}});
       },
       "[wide] arguments: expected a schema of at most 32, got 33"},
      {[&] {
         encoder_.dispatch({&kStatusRows, std::array{Operand(live_one), Operand(count_)}, {}});
       },
       "[status_rows] status: shares bytes with the live row count; expected separate memory"},
      {[&] {
         dispatch(encoder_, kUpdate, std::array{Operand(a_), Operand(a_)}, MixConstants{});
       },
       "[update] target: shares bytes with a; expected separate memory"},
      {[&] { rows(live_one, live_two); },
       "[rows] output: expected the live row count of the other row arguments, got another"},
      {[&] { rows(live_one, b_); },
       "[rows] output: expected the live row count of the other row arguments, got another"},
      {[&] { rows(b_, live_one); },
       "[rows] output: expected the live row count of the other row arguments, got another"},
      {[&] { rows(one_row, over_count); },
       "[rows] output: shares bytes with the live row count; expected separate memory"},
  };
  for (const auto& [action, message] : cases) EXPECT_EQ(refusal(action), message);
  EXPECT_EQ(encoder_.finish().commands.size(), 1u);
  EXPECT_EQ(device_.counters().dispatches_recorded, 1u);
}

TEST_F(Encoder, NeighboursAndSharedInputsAreNoOverlap) {
  mix(a_, a_, b_);
  mix(a_.slice(0, 4), a_.slice(2, 4), a_.slice(6, 2));
  pair(a_.slice(0, 2), b_.slice(0, 2), a_.slice(2, 3), a_.slice(5, 3));
  mix(a_, {}, a_);
  const Temp t = encoder_.temp(DType::u32, {4});
  mix(a_, {}, t);
  mix(t, {}, t.view({2, 2}));
  EXPECT_EQ(encoder_.finish().commands.size(), 6u);
}

TEST_F(Encoder, TempOfAnEndedRecordingIsForeign) {
  // Its recording is gone and another may lie where it lay.
  Temp old;
  {
    CommandEncoder ended = device_.encoder();
    old = ended.temp(DType::u32, {8, 4});
  }
  CommandEncoder next = device_.encoder();
  next.temp(DType::u32, {8, 4});
  EXPECT_EQ(refusal([&] {
              dispatch(next, kMix, std::array{Operand(a_), Operand(), Operand(old)}, MixConstants{});
            }),
            "[mix] output: expected a temp of this recording");
}

TEST_F(Encoder, MisuseOfTemps) {
  const Buffer foreign = other_.buffer(DType::u32, {1});
  const Temp live = encoder_.temp(DType::u32, {8, 4}, count_.slice(0, 1));
  const Temp plain = encoder_.temp(DType::activation, {8, 4});
  EXPECT_EQ(plain.view({32}).shape(), Shape{32});
  EXPECT_EQ(live.view({8, 2, 2}).shape(), (Shape{8, 2, 2}));
  EXPECT_FALSE(Temp());
  EXPECT_TRUE(plain);
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const std::pair<Action, const char*> cases[] = {
      {[&] {
         encoder_.temp(DType::u32, {0, 4});
       },
       "[encoder] temp: expected elements, got [0, 4]"},
      {[&] {
         encoder_.temp(DType::u32, {kHuge, 2});
       },
       "[shape] [9223372036854775807, 2]: the number of elements overflows"},
      {[&] { encoder_.temp(DType::u32, {int64_t{1} << 62}); },
       "[encoder] temp: u32 [4611686018427387904] is too large"},
      {[&] { encoder_.temp(DType::activation, {int64_t{1} << 62}); },
       "[encoder] temp: activation [4611686018427387904] is too large"},
      {[&] { encoder_.temp(DType::u32, {}, count_.slice(0, 1)); },
       "[encoder] temp: expected a first dimension that counts rows"},
      {[&] { encoder_.temp(DType::u32, {4}, count_); },
       "[encoder] temp: live rows: expected a u32 buffer of one element"},
      {[&] { encoder_.temp(DType::u32, {4}, Buffer()); },
       "[encoder] temp: live rows: expected a u32 buffer of one element"},
      {[&] { encoder_.temp(DType::u32, {4}, foreign); },
       "[encoder] temp: live rows: expected a buffer of this device, got another device's"},
      {[&] { plain.view({31}); }, "[temp] view: expected 32 elements as in [8, 4], got [31]"},
      {[&] { live.view({32}); }, "[temp] view: expected 8 rows, of which a count is live, got [32]"},
  };
  for (const auto& [action, message] : cases) EXPECT_EQ(refusal(action), message);
}

TEST_F(Encoder, MisuseOfBuffers) {
  const Buffer foreign = other_.buffer(DType::u32, {1}), none;
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const std::pair<Action, const char*> cases[] = {
      {[&] { a_.slice(0, 9); }, "[buffer] slice: expected rows within [0, 8), got [0, 0 + 9)"},
      {[&] { a_.slice(-1, 2); }, "[buffer] slice: expected rows within [0, 8), got [-1, -1 + 2)"},
      {[&] { a_.slice(2, -1); }, "[buffer] slice: expected rows within [0, 8), got [2, 2 + -1)"},
      {[&] { a_.slice(8, kHuge); },
       "[buffer] slice: expected rows within [0, 8), got [8, 8 + 9223372036854775807)"},
      {[&] { none.slice(0, 0); }, "[buffer] slice: expected a buffer with a dimension"},
      {[&] { a_.view(DType::u32, {33}); }, "[buffer] view: bytes [0, 0 + 132) exceed the view of 128"},
      {[&] { a_.view(DType::u8, {1}, 128); }, "[buffer] view: bytes [128, 128 + 1) exceed the view of 128"},
      {[&] { a_.view(DType::u8, {1}, SIZE_MAX); },
       "[buffer] view: bytes [18446744073709551615, 18446744073709551615 + 1) exceed the view of 128"},
      {[&] { a_.slice(1, 1).view(DType::u32, {5}); },
       "[buffer] view: bytes [0, 0 + 20) exceed the view of 16"},
      {[&] { a_.view(DType::u32, {2}, 2); },
       "[buffer] view: offset 2 is not a multiple of the 4 bytes of u32"},
      {[&] { a_.view(DType::u64, {int64_t{1} << 61}); },
       "[buffer] shape: [2305843009213693952] is too large"},
      {[&] { a_.view(DType::activation, {1}); }, "[buffer] dtype: activation has no size"},
      {[&] { none.view(DType::u32, {}); }, "[buffer] view: expected a buffer, got none"},
      {[&] { a_.with_live_rows(count_); }, "[buffer] with_live_rows: expected a u32 buffer of one element"},
      {[&] { a_.with_live_rows(none); }, "[buffer] with_live_rows: expected a u32 buffer of one element"},
      {[&] { a_.with_live_rows(count_.view(DType::i32, {1})); },
       "[buffer] with_live_rows: expected a u32 buffer of one element"},
      {[&] { none.with_live_rows(count_.slice(0, 1)); },
       "[buffer] with_live_rows: expected a buffer with rows"},
      {[&] { a_.with_live_rows(foreign); },
       "[buffer] with_live_rows: expected a count on this buffer's device, got another device's"},
      {[&] { a_.span<float>(); }, "[buffer] span: expected u32, got f32"},
      {[&] { none.span<float>(); }, "[buffer] span: expected a buffer, got none"},
      {[&] { none.host_span(); }, "[buffer] span: expected a buffer, got none"},
      {[&] { none.device_view(); }, "[buffer] device_view: expected a buffer, got none"},
      {[&] { Buffer(nullptr, 0, DType::u32, {1}); }, "[buffer] memory: expected an allocation, got none"},
      {[&] { Buffer(a_.memory(), 124, DType::u32, {2}); },
       "[buffer] view: bytes [124, 124 + 8) exceed the allocation of 128"},
      {[&] { Buffer(a_.memory(), SIZE_MAX - 3, DType::u32, {2}); },
       "[buffer] view: bytes [18446744073709551612, 18446744073709551612 + 8) exceed the allocation of 128"},
  };
  for (const auto& [action, message] : cases) EXPECT_EQ(refusal(action), message);
  EXPECT_EQ(none.shape().rank(), 0u);
  EXPECT_EQ(none.bytes(), 0u);
  EXPECT_EQ(none.memory(), nullptr);
  Buffer moved = a_, taken = std::move(moved);
  EXPECT_EQ(refusal([&] { moved.host_span(); }), "[buffer] span: expected a buffer, got none");  // NOLINT
}

TEST_F(Encoder, DefaultHandlesThrow) {
  const Weight weight;
  const Plan plan;
  const Program program;
  const std::string no_weight = "[weight] expected a packed weight, got none";
  EXPECT_EQ(refusal([&] { (void)weight.name(); }), no_weight);
  EXPECT_EQ(refusal([&] { (void)weight.format(); }), no_weight);
  EXPECT_EQ(refusal([&] { (void)weight.dtype(); }), no_weight);
  EXPECT_EQ(refusal([&] { (void)weight.shape(); }), no_weight);
  EXPECT_EQ(refusal([&] { (void)weight.bytes(); }), no_weight);
  EXPECT_EQ(refusal([&] { (void)weight.in_place(); }), no_weight);
  EXPECT_EQ(weight.state(), nullptr);
  EXPECT_EQ(refusal([&] { plan.data(); }), "[plan] expected a plan, got none");
  EXPECT_EQ(refusal([&] { (void)plan.arena_bytes(); }), "[plan] expected a plan, got none");
  EXPECT_EQ(refusal([&] { program.plan(); }), "[program] expected a prepared program, got none");
  EXPECT_EQ(Temp().view({1}).shape(), Shape{1});
}

}  // namespace
}  // namespace refrain::null_tests

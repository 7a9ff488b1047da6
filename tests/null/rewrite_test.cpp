// Rewrites: toy ops that become two over random recordings, judged as any plan; what may not be rewritten, and tables that
// break the contract.
#include "refrain/graph/rewrite.h"

#include <gtest/gtest.h>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using backend::Replacement;
using backend::Rewrite;
using backend::RewriteTarget;
using test::refusal;

constexpr auto of_call = backend::RewriteArgument::of_call;
constexpr auto value = backend::RewriteArgument::value;

// The halves of mix: sum[i] = mixed(a[i], b[i]), then output[i] = mixed(sum[i], salt).
constexpr ArgumentSpec kSumArgs[] = {{"a", Access::in}, {"b", Access::in, false, true}, {"sum", Access::out}};
constexpr OpSchema kSum{"sum", kSumArgs, sizeof(MixConstants), check_dtypes};
constexpr ArgumentSpec kSaltArgs[] = {{"sum", Access::in}, {"output", Access::out}};
constexpr OpSchema kSalt{"salt", kSaltArgs, sizeof(MixConstants), check_dtypes};
// Of note: what it tells, apart from what it computes (salt).
constexpr ArgumentSpec kTellArgs[] = {{"a", Access::in}, {"status", Access::accumulate}};
constexpr OpSchema kTell{"tell", kTellArgs, sizeof(MixConstants), check_dtypes};
// Live rows copied.
constexpr ArgumentSpec kCopyArgs[] = {{"a", Access::in, true}, {"output", Access::out, true}};
constexpr OpSchema kCopy{"copy", kCopyArgs, sizeof(MixConstants), check_dtypes};

void run_sum(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  const auto *a = args.arg<uint32_t>(0), *b = args.arg<uint32_t>(1);
  for (uint32_t i = 0; i < c.output; ++i)
    args.arg<uint32_t>(2)[i] = mixed(a[i % c.a], b == nullptr ? 0 : b[i % c.b]);
}
void run_salt(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  for (uint32_t i = 0; i < c.output; ++i)
    args.arg<uint32_t>(1)[i] = mixed(args.arg<uint32_t>(0)[i % c.a], c.salt);
}
void run_tell(const TileArgs& args, uint32_t, uint32_t) {
  std::atomic_ref<uint32_t>(*args.arg<uint32_t>(1))
      .fetch_or(args.arg<uint32_t>(0)[0], std::memory_order_relaxed);
}
void run_copy(const TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<MixConstants>();
  for (uint32_t i = begin * c.a; i < std::min(end, args.live_rows) * c.a; ++i)
    args.arg<uint32_t>(1)[i] = args.arg<uint32_t>(0)[i];
}
constexpr backend::TileKernel kRunSum{nullptr, nullptr, run_sum}, kRunSalt{nullptr, nullptr, run_salt},
    kRunTell{nullptr, nullptr, run_tell}, kRunCopy{nullptr, nullptr, run_copy};

std::vector<backend::Kernel> kernels() {
  std::vector<backend::Kernel> table(std::begin(kKernels), std::end(kKernels));
  table.push_back({"sum", &kSum, "test", 0, 0, any, one_tile, &kRunSum});
  table.push_back({"salt_scratch", &kSalt, "test", 0, 0, with_scratch, one_tile_and_scratch, &kRunSalt});
  table.push_back({"salt", &kSalt, "test", 0, 0, any, one_tile, &kRunSalt});
  table.push_back({"tell", &kTell, "test", 0, 0, any, one_tile, &kRunTell});
  table.push_back({"copy", &kCopy, "test", 0, 0, any, tile_per_row, &kRunCopy});
  return table;
}

bool split_mix(const OpCall& call, const RewriteTarget&, Replacement& made) {
  const auto& c = call.constants_as<MixConstants>();
  if (c.salt % 5 == 0) return false;
  const uint32_t sum = made.value(DType::u32, {c.output});
  made.command(kSum, {of_call(0), call.args[1].bound ? of_call(1) : backend::RewriteArgument(), value(sum)},
               c);
  made.command(kSalt, {value(sum), of_call(2)}, MixConstants{c.salt, c.output, 0, c.output});
  return true;
}
bool split_note(const OpCall& call, const RewriteTarget&, Replacement& made) {
  const auto& c = call.constants_as<MixConstants>();
  made.command(kTell, {of_call(0), of_call(1)}, c);
  made.command(kSalt, {of_call(0), of_call(2)}, c);
  return true;
}
bool split_rows(const OpCall& call, const RewriteTarget&, Replacement& made) {
  const auto& c = call.constants_as<MixConstants>();
  const uint32_t copy = made.value(DType::u32, call.args[0].shape);
  made.command(kCopy, {of_call(0), value(copy)}, c);
  made.command(kRows, {value(copy), of_call(1)}, c);
  return true;
}
constexpr Rewrite kRewrites[] = {
    {"split_mix", &kMix, split_mix}, {"split_note", &kNote, split_note}, {"split_rows", &kRows, split_rows}};

TEST(Rewrite, RandomRecordingsKeepTheirBitsInEveryOrder) {
  const std::vector<backend::Kernel> table = kernels();
  const backend::KernelTables tables(table, {}, kRewrites);
  for (uint32_t seed = 0; seed < 300; ++seed)
    ASSERT_EQ(graph_faults(seed, 4 + seed % 60, tables), "") << "seed " << seed;
}

TEST(Rewrite, ReplacesWhatDoesNotWorkInPlaceAndKeepsFences) {
  const std::vector<backend::Kernel> table = kernels();
  const backend::KernelTables tables(table, {}, kRewrites);
  size_t rewritten = 0, in_place = 0, live = 0, fences = 0;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Device device = null_device();
    RandomGraph random(device, seed, 60);
    const ComputeGraph recorded = random.finish();
    ComputeGraph graph = recorded;
    graph::expand(graph, graph::Mode::exact);
    const graph::RewriteReport report = graph::rewrite(graph, tables, device.info(), 0);
    EXPECT_EQ(graph.commands.size(), recorded.commands.size() + report.rewrites.size()) << "each became two";
    rewritten += report.rewrites.size();
    in_place += report.misses.size();
    for (const std::string& miss : report.misses)
      EXPECT_NE(miss.find("it works in place"), std::string::npos);
    // What is not of a rewrite stands in the recorded order.
    std::vector<const OpSchema*> before, after;
    for (const graph::Command& command : recorded.commands) before.push_back(command.op);
    for (const graph::Command& command : graph.commands) {
      fences += command.fence();
      live += command.op == &kCopy && command.live;
      if (command.op == &kSum || command.op == &kTell || command.op == &kCopy) continue;
      after.push_back(command.op == &kSalt ? nullptr : command.op);
    }
    ASSERT_EQ(before.size(), after.size());
    for (size_t i = 0; i < before.size(); ++i) {
      if (after[i] != nullptr) {
        EXPECT_EQ(before[i], after[i]) << i;
      }
    }
  }
  EXPECT_GT(rewritten, 500u);
  EXPECT_GT(in_place, 50u);
  EXPECT_GT(live, 50u);
  EXPECT_GT(fences, 50u);
}

/// One recorded command of a table under test.
class RewriteTable : public ::testing::Test {
 protected:
  /// Records mix, labelled, between two updates of its output.
  ComputeGraph record() {
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kUpdate, std::array{Operand(a_), Operand(b_)}, MixConstants{1, 8, 0, 8});
    encoder.label("the sum");
    dispatch(encoder, kMix, std::array{Operand(a_), Operand(b_), Operand(c_)}, MixConstants{1, 8, 8, 8});
    encoder.label("");
    dispatch(encoder, kUpdate, std::array{Operand(c_), Operand(a_)}, MixConstants{1, 8, 0, 8});
    return encoder.finish();
  }
  graph::RewriteReport rewrite(ComputeGraph& graph, std::span<const Rewrite> rewrites, uint32_t splits = 0) {
    graph::expand(graph, graph::Mode::exact);
    return graph::rewrite(graph, {kernels_, {}, rewrites}, device_.info(), splits);
  }
  /// What planning says when mix becomes what `rewrite` makes of it.
  std::string error_of(bool (*function)(const OpCall&, const RewriteTarget&, Replacement&)) {
    const Rewrite rewrites[] = {{"bad", &kMix, function}};
    ComputeGraph graph = record();
    return refusal<Error>([&] { rewrite(graph, rewrites); });
  }

  std::vector<backend::Kernel> kernels_ = kernels();
  Device device_ = null_device();
  Buffer a_ = device_.buffer(DType::u32, {8}), b_ = device_.buffer(DType::u32, {8}),
         c_ = device_.buffer(DType::u32, {8});
};

TEST_F(RewriteTable, NamesAndLabelsSayWhatWasRewritten) {
  graph::PlanOptions options;
  options.check = true;
  const auto [plan, report] = graph::make_plan(record(), {kernels_, {}, kRewrites}, device_.info(), options);
  ASSERT_EQ(report.rewrites.size(), 1u);
  EXPECT_EQ(report.rewrites[0], "split_mix: mix \"the sum\" is #1 sum #2 salt");
  EXPECT_EQ(report.recorded_commands, 3u);
  EXPECT_EQ(report.commands, 4u);
  ASSERT_EQ(plan.commands.size(), 4u);
  for (const uint32_t i : {1u, 2u}) EXPECT_EQ(plan.labels[plan.commands[i].label], "the sum");
  for (const uint32_t i : {0u, 3u}) EXPECT_EQ(plan.labels[plan.commands[i].label], "");
}

TEST_F(RewriteTable, TheFirstThatReplacesDoes) {
  static constexpr auto kNever = [](const OpCall&, const RewriteTarget&, Replacement&) { return false; };
  const Rewrite rewrites[] = {{"never", &kMix, kNever}, {"one", &kMix, split_mix}, {"two", &kMix, split_mix}};
  ComputeGraph graph = record();
  EXPECT_EQ(rewrite(graph, rewrites).rewrites[0].substr(0, 4), "one:");
  ComputeGraph other = record();
  EXPECT_TRUE(rewrite(other, std::span(rewrites).first(1)).rewrites.empty());
  EXPECT_EQ(other.commands.size(), 3u);
}

TEST_F(RewriteTable, GetsTheSplitsAskedFor) {
  static constexpr auto kThree = [](const OpCall& call, const RewriteTarget& target, Replacement& made) {
    return target.splits == 3 && target.info.compute_units == 1 && split_mix(call, target, made);
  };
  const Rewrite rewrites[] = {{"three", &kMix, kThree}};
  for (const uint32_t splits : {0u, 1u, 3u}) {
    graph::PlanOptions options;
    options.splits = splits;
    const auto [plan, report] = graph::make_plan(record(), {kernels_, {}, rewrites}, device_.info(), options);
    EXPECT_EQ(report.rewrites.size(), splits == 3 ? 1u : 0u);
  }
}

TEST_F(RewriteTable, ACallOfAnotherNumericsClassStaysAsItWas) {
  for (backend::Kernel& kernel : kernels_) {
    if (kernel.op == &kSalt) kernel.numerics = "other";
  }
  ComputeGraph graph = record();
  graph::expand(graph, graph::Mode::exact);
  const ComputeGraph before = graph;
  const graph::RewriteReport report = rewrite(graph, kRewrites);
  EXPECT_TRUE(report.rewrites.empty());
  ASSERT_EQ(report.misses.size(), 1u);
  EXPECT_EQ(report.misses[0],
            "#1 mix \"the sum\" is not rewritten by split_mix: kernel mix is of the class \"test\", salt of "
            "\"other\"");
  EXPECT_EQ(graph.commands.size(), before.commands.size());
  EXPECT_EQ(graph.bindings.size(), before.bindings.size());
  EXPECT_EQ(graph.infos.size(), before.infos.size());
  EXPECT_EQ(graph.temps.size(), before.temps.size());
  EXPECT_EQ(graph.constants.size(), before.constants.size());
  EXPECT_EQ(graph.commands[1].op, &kMix);
}

TEST_F(RewriteTable, WhatHasNoKernelOfItsOwnIsRewrittenInAnyClass) {
  std::erase_if(kernels_, [](const backend::Kernel& kernel) { return kernel.op == &kMix; });
  for (backend::Kernel& kernel : kernels_) {
    if (kernel.op == &kSalt) kernel.numerics = "other";
  }
  const auto [plan, report] = graph::make_plan(record(), {kernels_, {}, kRewrites}, device_.info(), {});
  EXPECT_EQ(report.rewrites.size(), 1u);
}

TEST_F(RewriteTable, WhatHasNoKernelForItsPartsStaysWhole) {
  std::erase_if(kernels_, [](const backend::Kernel& kernel) { return kernel.op == &kSum; });
  const auto [plan, report] = graph::make_plan(record(), {kernels_, {}, kRewrites}, device_.info(), {});
  EXPECT_TRUE(report.rewrites.empty());
  ASSERT_GE(report.misses.size(), 1u);
  EXPECT_NE(report.misses[0].find("no kernel accepts sum"), std::string::npos);
}

TEST_F(RewriteTable, BrokenContractsAreNamed) {
  using Made = Replacement;
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kSum, {of_call(0), of_call(1)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: expected 3 arguments, got 2");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              const uint32_t sum = made.value(DType::activation, {8});
              made.command(kSum, {of_call(0), of_call(1), value(sum)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: sum: expected a value of a dtype of its own, got activation");
  static constexpr ArgumentSpec kListedArgs[] = {
      {"a", Access::in}, {.name = "output", .access = Access::out, .dtypes = {DType::f16}}};
  static constexpr OpSchema kListed{
      .name = "listed", .args = kListedArgs, .constants_bytes = sizeof(MixConstants)};
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kListed, {of_call(0), of_call(2)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: listed: [listed] output: expected f16, got u32");
  EXPECT_EQ(error_of([](const OpCall&, const RewriteTarget&, Made& made) {
              made.command(kSum, {of_call(0), of_call(1), of_call(2)}, uint64_t{3});
              return true;
            }),
            "[plan] rewrite bad of mix: sum: expected 16 bytes of constants, got 8");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kSum, {value(made.value(DType::u32, {8})), of_call(1), of_call(2)},
                           call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: a: expected a value that has been written");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kSum, {of_call(0), of_call(1), of_call(0)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: sum: expected to touch a as the call does");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kSum, {of_call(2), of_call(1), of_call(2)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: a: expected to touch output as the call does")
      << "read before it is written";
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kTell, {of_call(0), of_call(2)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: tell: status: expected to touch output as the call does");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kSum, {backend::RewriteArgument(), of_call(1), of_call(2)},
                           call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: a: expected an argument, got nothing");
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              const uint32_t sum = made.value(DType::u8, {8});
              made.command(kSum, {of_call(0), of_call(1), value(sum)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: sum: [sum] sum: expected u32, got u8");
  static constexpr OpSchema kUnknown{
      .name = "unknown", .args = kSumArgs, .constants_bytes = sizeof(MixConstants), .unknown_access = true};
  EXPECT_EQ(error_of([](const OpCall& call, const RewriteTarget&, Made& made) {
              made.command(kUnknown, {of_call(0), of_call(1), of_call(2)}, call.constants_as<MixConstants>());
              return true;
            }),
            "[plan] rewrite bad of mix: unknown: expected an op whose access is known");
}

TEST_F(RewriteTable, AnOutputThatIsWrittenMayBeReadBack) {
  static constexpr auto kBack = [](const OpCall& call, const RewriteTarget&, Replacement& made) {
    const auto& c = call.constants_as<MixConstants>();
    made.command(kSum, {of_call(0), of_call(1), of_call(2)}, c);
    made.command(kSum, {of_call(2), of_call(1), value(made.value(DType::u32, {8}))}, c);
    return true;
  };
  const Rewrite rewrites[] = {{"back", &kMix, kBack}};
  ComputeGraph graph = record();
  EXPECT_EQ(rewrite(graph, rewrites).rewrites.size(), 1u);
}

TEST_F(RewriteTable, LiveRowsAreThoseOfTheCall) {
  static constexpr auto kFewer = [](const OpCall& call, const RewriteTarget&, Replacement& made) {
    const auto& c = call.constants_as<MixConstants>();
    made.command(kSum, {of_call(0), backend::RewriteArgument(), value(made.value(DType::u32, {4, 4}))}, c);
    made.command(kCopy, {value(0), of_call(1)}, c);
    return true;
  };
  const Rewrite rewrites[] = {{"fewer", &kRows, kFewer}};
  const Buffer count = device_.buffer(DType::u32, {1});
  CommandEncoder encoder = device_.encoder();
  const Temp output = encoder.temp(DType::u32, {8, 1}, count);
  dispatch(encoder, kRows,
           std::array{Operand(a_.view(DType::u32, {8, 1}).with_live_rows(count)), Operand(output)},
           MixConstants{1, 1, 0, 0});
  ComputeGraph graph = encoder.finish();
  EXPECT_EQ(refusal<Error>([&] { rewrite(graph, rewrites); }),
            "[plan] rewrite fewer of rows: copy: expected the call's 8 rows, got 4");
}

TEST_F(RewriteTable, OneRowArgumentMakesACommandLive) {
  static constexpr ArgumentSpec kJoinArgs[] = {
      {"a", Access::in, true}, {"b", Access::in, false, true}, {"output", Access::out, true}};
  static constexpr OpSchema kJoin{"join", kJoinArgs, sizeof(MixConstants), check_dtypes};
  static constexpr auto kMade = [](const OpCall& call, const RewriteTarget&, Replacement& made) {
    const auto& c = call.constants_as<MixConstants>();
    made.command(kSum, {of_call(0), backend::RewriteArgument(), value(made.value(DType::u32, {8, 1}))}, c);
    made.command(kJoin, {value(0), backend::RewriteArgument(), of_call(1)}, c);
    return true;
  };
  kernels_.push_back({"join", &kJoin, "test", 0, 0, any, tile_per_row, &kRunCopy});
  const Rewrite rewrites[] = {{"joined", &kRows, kMade}};
  const Buffer count = device_.buffer(DType::u32, {1});
  CommandEncoder encoder = device_.encoder();
  const Temp output = encoder.temp(DType::u32, {8, 1}, count);
  dispatch(encoder, kRows,
           std::array{Operand(a_.view(DType::u32, {8, 1}).with_live_rows(count)), Operand(output)},
           MixConstants{1, 1, 0, 0});
  ComputeGraph graph = encoder.finish();
  rewrite(graph, rewrites);
  ASSERT_EQ(graph.commands.size(), 2u);
  EXPECT_FALSE(graph.commands[0].live) << "none of its arguments has rows";
  EXPECT_TRUE(graph.commands[1].live);
}

// An op whose check takes activations while their dtype is open, but not as what they become.
TEST_F(RewriteTable, ChecksRunAgainOnceDtypesAreKnown) {
  static constexpr ArgumentSpec kArgs[] = {{"output", Access::out}};
  static constexpr OpSchema kOpen{"open", kArgs, 0, [](const OpCall& call) {
                                    if (call.args[0].dtype == DType::activation) return;
                                    throw InvalidArgument("[open] output: expected an activation");
                                  }};
  CommandEncoder encoder = device_.encoder();
  const Temp output = encoder.temp(DType::activation, {8});
  const Operand operands[] = {output};
  encoder.dispatch({&kOpen, operands, {}});
  ComputeGraph graph = encoder.finish();
  EXPECT_EQ(refusal([&] { rewrite(graph, {}); }), "[open] output: expected an activation");
}

// Of calls that are alike one is checked, and each that differs in a shape or a constant.
TEST_F(RewriteTable, ChecksRunAgainOncePerCall) {
  static constexpr ArgumentSpec kArgs[] = {{"output", Access::out}};
  static std::vector<std::pair<int64_t, uint32_t>> checked;
  static constexpr OpSchema kNoted{"noted", kArgs, sizeof(uint32_t), [](const OpCall& call) {
                                     if (call.args[0].dtype == DType::activation) return;
                                     checked.emplace_back(call.args[0].shape[0],
                                                          call.constants_as<uint32_t>());
                                   }};
  checked.clear();
  CommandEncoder encoder = device_.encoder();
  const auto call = [&](int64_t width, uint32_t constant) {
    const Temp output = encoder.temp(DType::activation, {width});
    dispatch(encoder, kNoted, std::array{Operand(output)}, constant);
  };
  for (int layer = 0; layer < 3; ++layer) {
    call(8, 1);
    call(4, 1);
    call(8, 2);
  }
  call(4, 2);
  call(8, 1);
  call(6, 1);  // where another has followed so far
  ComputeGraph graph = encoder.finish();
  rewrite(graph, {});
  EXPECT_EQ(checked, (std::vector<std::pair<int64_t, uint32_t>>{{8, 1}, {4, 1}, {8, 2}, {4, 2}, {6, 1}}));
}

// Decorators hand the table on, and what is planned runs.
TEST(Rewrite, ComesWithTheBackend) {
  const std::vector<backend::Kernel> table = kernels();
  backend::CpuOptions options;
  options.threads = 2;
  const auto cpu = [&] { return backend::make_cpu(options, {table, {}, kRewrites}); };
  using Made = std::unique_ptr<backend::Backend>;
  for (const std::function<Made()>& make : std::vector<std::function<Made()>>{
           cpu, [&] { return backend::make_validate(cpu()); }, [&] { return backend::make_remote(cpu()); },
           [&] { return backend::make_fault(cpu()); }}) {
    Device device(std::shared_ptr<backend::Backend>(make()), {}, {});
    const Buffer a = device.buffer(DType::u32, {8}), b = device.buffer(DType::u32, {8});
    device.write(a, std::vector<uint32_t>{1, 2, 3, 4, 5, 6, 7, 8});
    CommandEncoder encoder = device.encoder();
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 8, 0, 8});
    const auto [plan, report] = device.plan(encoder.finish());
    EXPECT_EQ(report.rewrites.size(), 1u);
    device.wait(device.submit(device.prepare(plan)));
    EXPECT_EQ(device.read<uint32_t>(b)[7], mixed(mixed(8, 0), 1));
  }
}

}  // namespace
}  // namespace refrain::null_tests

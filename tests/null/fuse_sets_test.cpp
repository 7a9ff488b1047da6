// Fusing for backends that do not compose kernels: sets grow while a kernel fits, values that it keeps lose their
// memory, and no bit changes whatever the kernels take.
#include "refrain/graph/fuse_sets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/set_pattern.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/graph/check.h"
#include "refrain/graph/make_plan.h"
#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using backend::Fit;
using backend::GroupKernel;
using backend::SetCall;

constexpr int kEntry = 0;

backend::Launch launch_with_all(const SetCall& call, const backend::DeviceInfo&) {
  backend::Launch launch;
  launch.rows = call.rows;
  launch.walkers = 3;
  launch.scratch_bytes = 40;
  launch.workspace_bytes = 100;
  launch.ticket_bytes = 8;
  return launch;
}
backend::Launch launch_plain(const SetCall& call, const backend::DeviceInfo&) { return {call.rows, 1, 1, 0}; }

// norm -> project, project -> blend: as norm, gate, up and silu_mul of a model.
constexpr std::string_view kPlaces[] = {"norm", "project", "project", "blend"};
constexpr backend::SetWire kWires[] = {{0, 1, 1, 0}, {0, 1, 2, 0}, {1, 2, 3, 0}, {2, 2, 3, 1}};
constexpr backend::SetElided kElided[] = {{0, 1}, {1, 2}, {2, 2}};
constexpr backend::SetPattern kGated{kPlaces, kWires, kElided, nullptr};
constexpr backend::SetPattern kNormProject{std::span(kPlaces).first(2), std::span(kWires).first(1),
                                           std::span(kElided).first(1), nullptr};

constexpr GroupKernel kGatedKernel{
    "gated",
    "test",
    0,
    [](const SetCall& c, std::span<uint32_t> p) { return match(kGated, c, p); },
    [](const SetCall& c, uint32_t m, uint32_t a) { return elides(kGated, c, m, a); },
    launch_with_all,
    &kEntry};
constexpr GroupKernel kNormProjectKernel{
    "norm_project",
    "test",
    0,
    [](const SetCall& c, std::span<uint32_t> p) { return match(kNormProject, c, p); },
    [](const SetCall& c, uint32_t m, uint32_t a) { return elides(kNormProject, c, m, a); },
    launch_plain,
    &kEntry};

class FuseSets : public ::testing::Test {
 protected:
  FuseSets() {
    info_ = device_.info();
    info_.composes = false;
  }
  Buffer buffer(int64_t columns = 8) { return device_.buffer(DType::u32, {4, columns}); }
  Temp temp(CommandEncoder& e, int64_t columns = 8) { return e.temp(DType::u32, {4, columns}); }
  static void add(CommandEncoder& e, const OpSchema& op, std::initializer_list<Operand> operands) {
    const RowConstants constants{1, 8, 4, 8};
    std::vector<Operand> bound(operands);
    e.dispatch({&op, bound, std::as_bytes(std::span(&constants, 1))});
  }
  std::pair<backend::PlanData, PlanReport> plan(CommandEncoder& e, std::span<const GroupKernel> groups) {
    graph::PlanOptions options;
    options.check = true;
    return graph::make_plan(e.finish(), backend::KernelTables(fusible_kernels(), groups), info_, options);
  }
  /// Records norm, two projects and a blend of them.
  struct Gated {
    Temp normed, gate, up, output;
  };
  Gated gated(CommandEncoder& e, const Buffer& x, const Buffer& weight) {
    Gated g{temp(e), temp(e), temp(e), temp(e)};
    add(e, kNorm, {x, g.normed});
    add(e, kProject, {g.normed, weight, g.gate});
    add(e, kProject, {g.normed, weight, g.up});
    add(e, kBlend, {g.gate, g.up, g.output});
    return g;
  }

  Device device_{backend::make_null(fusible_kernels()), {}, {}};
  backend::DeviceInfo info_;
};

TEST_F(FuseSets, TakesTheLastKernelThatIsWhole) {
  const Buffer x = buffer(), y = buffer(), weight = buffer();
  const GroupKernel both[] = {kNormProjectKernel, kGatedKernel};
  CommandEncoder e = device_.encoder();
  const Gated g = gated(e, x, weight);
  add(e, kAccumulate, {g.output, y});
  const auto [data, report] = plan(e, both);
  ASSERT_EQ(data.commands.size(), 2u);
  const backend::PlanCommand& command = data.commands[0];
  EXPECT_EQ(command.kind, backend::CommandKind::group_kernel);
  EXPECT_EQ(command.group_kernel, &both[1]);
  EXPECT_EQ(report.fusions, std::vector<std::string>{"gated: #0 #1 #2 #3"});
  ASSERT_EQ(command.placed.count, 4u);
  for (uint32_t m = 0; m < 4; ++m) EXPECT_EQ(data.placed[command.placed.first + m].place, m);
  // Three values have no bytes; what is left is the output, the scratch of three walkers and the workspace.
  for (const auto& [member, argument] :
       {std::pair{0u, 1u}, {1u, 0u}, {1u, 2u}, {2u, 0u}, {2u, 2u}, {3u, 0u}, {3u, 1u}})
    EXPECT_EQ(data.args[data.placed[member].args.first + argument].view.bytes, 0u)
        << member << " " << argument;
  EXPECT_EQ(data.args[command.args.first + command.scratch_arg].view.bytes, 3 * 64 + 100u);
  EXPECT_EQ(report.temp_bytes, 4 * 8 * 4 + 3 * 64 + 100u);
  EXPECT_EQ(data.ticket_bytes, 64u);
  EXPECT_EQ(data.commands[1].deps.count, 1u);
}

TEST_F(FuseSets, FallsBackWhereAValueIsTouchedOutside) {
  const Buffer x = buffer(), y = buffer(), weight = buffer();
  const GroupKernel both[] = {kGatedKernel, kNormProjectKernel};
  CommandEncoder e = device_.encoder();
  const Gated g = gated(e, x, weight);
  add(e, kNorm, {g.gate, y});  // the gate's value is read by another: not to be kept
  const auto [data, report] = plan(e, both);
  EXPECT_TRUE(report.fusions.empty()) << "the norm's value is read by two products";
  EXPECT_EQ(data.commands.size(), 5u);

  CommandEncoder one = device_.encoder();
  const Temp normed = temp(one), product = temp(one);
  add(one, kNorm, {x, normed});
  add(one, kProject, {normed, weight, product});
  add(one, kBlend, {product, product, y});
  const auto [smaller, smaller_report] = plan(one, both);
  EXPECT_EQ(smaller_report.fusions, std::vector<std::string>{"norm_project: #0 #1"});
  EXPECT_EQ(smaller.commands.size(), 2u);
}

TEST_F(FuseSets, KeepsApartWhatAPathConnects) {
  const Buffer x = buffer(), y = buffer(), weight = buffer();
  const GroupKernel only[] = {kGatedKernel};
  CommandEncoder e = device_.encoder();
  const Temp normed = temp(e), gate = temp(e), up = temp(e), between = temp(e);
  add(e, kNorm, {x, normed});
  add(e, kProject, {normed, weight, gate});
  add(e, kNorm, {gate, between});  // out of the set ...
  add(e, kProject, {normed, weight, up});
  add(e, kBlend, {gate, between, y});  // ... and back, but the wire to `up` is missing
  EXPECT_TRUE(plan(e, only).second.fusions.empty());

  // Memory that is rewritten between: the second project reads what lies in `weight` after the update.
  CommandEncoder f = device_.encoder();
  const Gated g{temp(f), temp(f), temp(f), temp(f)};
  add(f, kNorm, {x, g.normed});
  add(f, kProject, {g.normed, weight, g.gate});
  add(f, kAccumulate, {y, weight});
  add(f, kProject, {g.normed, weight, g.up});
  add(f, kBlend, {g.gate, g.up, buffer()});
  const auto [data, report] = plan(f, only);
  EXPECT_TRUE(report.fusions.empty());
  ASSERT_FALSE(report.misses.empty());
  EXPECT_NE(report.misses[0].find("a path leads out of it and back"), std::string::npos) << report.misses[0];
  EXPECT_EQ(data.commands.size(), 5u);
}

TEST_F(FuseSets, AreNotCutByLiveCountsAndFences) {
  const Buffer count = device_.buffer(DType::u32, {2});
  const GroupKernel only[] = {kNormProjectKernel};
  const Buffer x = buffer(), weight = buffer();
  const auto fused = [&](const Buffer& first, const Buffer& second, bool fence) {
    CommandEncoder e = device_.encoder();
    const Temp normed = e.temp(DType::u32, {4, 8}, first);
    add(e, kNorm, {x.with_live_rows(first), normed});
    if (fence) e.barrier();
    const Buffer out = buffer().with_live_rows(second);
    if (first.offset_bytes() == second.offset_bytes()) {
      add(e, kProject, {normed, weight, out});
    } else {
      add(e, kProject, {x.with_live_rows(second), weight, out});
    }
    return plan(e, only).second.fusions.size();
  };
  EXPECT_EQ(fused(count.slice(0, 1), count.slice(0, 1), false), 1u);
  EXPECT_EQ(fused(count.slice(0, 1), count.slice(0, 1), true), 0u);
  EXPECT_EQ(fused(count.slice(0, 1), count.slice(1, 1), false), 0u);
}

TEST_F(FuseSets, ReachNoFurtherThanTheyLook) {
  constexpr int kReach = 32;
  const GroupKernel only[] = {kNormProjectKernel};
  const Buffer x = buffer(), weight = buffer();
  for (const int distance : {kReach, kReach + 1}) {
    CommandEncoder e = device_.encoder();
    const Temp normed = temp(e);
    add(e, kNorm, {x, normed});
    for (int i = 1; i < distance; ++i) add(e, kBlend, {x, x, temp(e)});
    add(e, kProject, {normed, weight, buffer()});
    EXPECT_EQ(plan(e, only).second.fusions.size(), distance == kReach ? 1u : 0u) << distance;
  }
}

TEST_F(FuseSets, AreCheckedBelowTheFront) {
  const std::unique_ptr<backend::Backend> checked =
      backend::make_validate(backend::make_null(fusible_kernels()));
  const auto own = [&](size_t bytes) {
    const backend::Allocation* made = checked->allocate({bytes, "own"});
    return backend::BufferView{made, 0, bytes};
  };
  const GroupKernel both[] = {kNormProjectKernel, kGatedKernel};
  CommandEncoder e = device_.encoder();
  gated(e, buffer(), buffer());
  backend::PlanData good = plan(e, both).first;
  for (backend::Argument& argument : good.args) {
    if (argument.view.allocation != nullptr) argument.view = own(argument.view.bytes);
  }
  backend::ExecutableOptions options;
  options.arena = own(std::max<size_t>(good.arena_bytes, 64));
  EXPECT_NO_THROW(checked->prepare(good, options));
  const auto refused = [&](std::string_view why, const std::function<void(backend::PlanData&)>& spoil) {
    backend::PlanData bad = good;
    spoil(bad);
    try {
      checked->prepare(bad, options);
      ADD_FAILURE() << "accepted: " << why;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  };
  refused("no kernel, or one without", [](auto& p) { p.commands[0].group_kernel = nullptr; });
  refused("members leave", [](auto& p) { p.commands[0].placed.count = 0; });
  refused("members leave", [](auto& p) { ++p.commands[0].placed.first; });
  refused("member 1: no op", [](auto& p) { p.placed[1].op = nullptr; });
  refused("member 2: its arguments", [](auto& p) { ++p.placed[2].args.first; });
  refused("member 0: its constants", [](auto& p) { p.placed[0].constants.first = 1 << 20; });
  refused("constants: expected", [](auto& p) { --p.placed[3].constants.count; });
  refused("access is not", [](auto& p) { p.args[p.placed[0].args.first].access = Access::inout; });
  refused("scratch argument do not agree", [](auto& p) { p.commands[0].scratch_arg = backend::kNone; });
  refused("expected 3 times 64 and 100 bytes, got 291",
          [](auto& p) { p.args[p.commands[0].args.first + p.commands[0].scratch_arg].view.bytes = 291; });
  refused("bytes of counters", [](auto& p) { p.ticket_bytes = 0; });
  refused("bytes of counters", [](auto& p) { p.commands[0].ticket_offset_bytes = 8; });
  static GroupKernel future = kGatedKernel;
  future.needs = uint64_t{1} << 63;
  refused("features that the device lacks", [](auto& p) { p.commands[0].group_kernel = &future; });
}

TEST_F(FuseSets, AKernelThatElidesWhatOthersTouchIsADefect) {
  GroupKernel wrong = kNormProjectKernel;
  wrong.elides = [](const SetCall&, uint32_t member, uint32_t argument) {
    return member == 1 && argument == 2;
  };
  const GroupKernel table[] = {wrong};
  CommandEncoder e = device_.encoder();
  const Temp normed = temp(e);
  add(e, kNorm, {buffer(), normed});
  add(e, kProject, {normed, buffer(), buffer()});
  EXPECT_THROW(plan(e, table), Error);
}

// Any two or three commands of which each shares bytes with the one before: hostile to the order of the rest.
constexpr GroupKernel kGreedy{
    "greedy",
    "test",
    0,
    [](const SetCall& call, std::span<uint32_t> places) {
      if (call.members.size() > 3) return Fit::no;
      for (size_t m = 0; m < call.members.size(); ++m) {
        places[m] = static_cast<uint32_t>(m);
        if (m == 0) continue;
        const auto& before = call.members[m - 1].args;
        const bool shares = std::ranges::any_of(call.members[m].args, [&](const auto& arg) {
          return arg.value != backend::kNone &&
                 std::ranges::find(before, arg.value, &backend::SetArgument::value) != before.end();
        });
        if (!shares) return Fit::no;
      }
      return call.members.size() == 1 ? Fit::part : Fit::whole;
    },
    nullptr,
    launch_plain,
    &kEntry};

/// The plan with each set taken apart again: its members in order, by their own kernels.
backend::PlanData taken_apart(const backend::PlanData& plan, std::vector<uint32_t>& order) {
  backend::PlanData result = plan;
  result.commands.clear();
  std::vector<std::vector<uint32_t>> parts(plan.commands.size());
  for (size_t i = 0; i < plan.commands.size(); ++i) {
    const backend::PlanCommand& command = plan.commands[i];
    const bool set = command.kind == backend::CommandKind::group_kernel;
    for (uint32_t m = 0; m < (set ? command.placed.count : 1); ++m) {
      parts[i].push_back(static_cast<uint32_t>(result.commands.size()));
      backend::PlanCommand& single = result.commands.emplace_back(command);
      if (!set) continue;
      const backend::PlacedMember& member = plan.placed[command.placed.first + m];
      single.kind = backend::CommandKind::kernel;
      single.args = member.args;
      single.constants = member.constants;
      single.live_arg = single.scratch_arg = backend::kNone;
      for (const backend::Kernel& kernel : kKernels) {
        // The kernels without scratch of these ops take every call.
        if (kernel.op == member.op && kernel.needs == 0 && kernel.accepts == any) single.kernel = &kernel;
      }
    }
  }
  std::vector<uint32_t> flat;
  for (const uint32_t i : order) flat.insert(flat.end(), parts[i].begin(), parts[i].end());
  order = std::move(flat);
  return result;
}

TEST(FuseSetsRandom, KeepsTheBitsInAnyOrder) {
  const GroupKernel greedy[] = {kGreedy};
  size_t sets = 0, misses = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 rng(seed);
    Device device = null_device(1);
    backend::DeviceInfo info = device.info();
    info.composes = false;
    RandomGraph random(device, seed, 20 + seed % 60);
    graph::PlanOptions options;
    options.check = true;
    const auto [plan, report] =
        graph::make_plan(random.finish(), backend::KernelTables(kKernels, greedy), info, options);
    sets += report.fusions.size();
    misses += report.misses.size();
    ASSERT_TRUE(graph::check_order(plan).empty()) << "seed " << seed;
    for (const Hostility hostility :
         {Hostility::random, Hostility::latest_first, Hostility::longest_path_last}) {
      std::vector<uint32_t> order = hostile_order(plan, hostility, rng);
      ASSERT_EQ(order.size(), plan.commands.size()) << "seed " << seed << ": the edges have a cycle";
      const backend::PlanData apart = taken_apart(plan, order);
      std::vector<std::byte> memory(apart.arena_bytes + 64, std::byte{0xEE});
      const auto address = reinterpret_cast<uintptr_t>(memory.data());
      random.reset();
      run_plan(apart, order, memory.data() + (64 - address % 64) % 64);
      ASSERT_TRUE(random.as_recorded()) << "seed " << seed;
    }
  }
  EXPECT_GT(sets, 1000u);
  EXPECT_GT(misses, 100u) << "no graph led out of a set and back";
}

}  // namespace
}  // namespace refrain::null_tests

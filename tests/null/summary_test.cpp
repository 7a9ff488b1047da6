// Summaries of plans against the definition, byte by byte.
#include "refrain/graph/summary.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/null/order_oracle.h"

namespace refrain::null_tests {
namespace {

using backend::Access;
using backend::Allocation;
using backend::Effect;
using graph::AccessSummary;

constexpr size_t kAllocations = 3, kBytes = 48;

struct Memory {
  std::array<Allocation, kAllocations> allocations;
  Memory() {
    for (size_t i = 0; i < kAllocations; ++i) allocations[i].id = 10 + i;
  }
};

backend::PlanData random_plan(std::mt19937& rng, const Memory& memory) {
  backend::PlanData plan;
  const size_t count = rng() % 12;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t which = rng() % (kAllocations + 1);
    const size_t begin = rng() % kBytes, bytes = rng() % std::min<size_t>(kBytes - begin + 1, 12);
    const Access access =
        std::array{Access::in, Access::in, Access::out, Access::inout, Access::accumulate}[rng() % 5];
    plan.args.push_back(
        {{which == kAllocations ? nullptr : &memory.allocations[which], begin, bytes}, access, false});
  }
  // One command has what lies before the cut, another what lies behind; the last argument is nobody's.
  const auto all = static_cast<uint32_t>(count);
  const uint32_t cut = rng() % (all + 1);
  for (const backend::Range args : {backend::Range{0, cut}, backend::Range{cut, all - cut}})
    plan.commands.emplace_back().args = args;
  plan.args.push_back({{&memory.allocations[0], 0, kBytes}, Access::inout, false});
  plan.arena_bytes = kBytes;
  return plan;
}

/// Bits: 1: read, 2: accumulated, 4: written. A byte with several is as one that is written.
using Bytes = std::array<std::array<int, kBytes>, kAllocations>;

Bytes touched(const backend::PlanData& plan, const Memory& memory) {
  Bytes bytes{};
  for (const backend::Argument& arg : std::span(plan.args).first(plan.args.size() - 1)) {
    if (arg.view.allocation == nullptr) continue;
    auto& row = bytes[static_cast<size_t>(arg.view.allocation - memory.allocations.data())];
    for (size_t b = arg.view.offset_bytes; b < arg.view.offset_bytes + arg.view.bytes; ++b)
      row[b] |= arg.access == Access::in ? 1 : arg.access == Access::accumulate ? 2 : 4;
  }
  for (auto& row : bytes) {
    for (int& byte : row) byte = byte < 3 ? byte : 4;
  }
  return bytes;
}

bool conflict(const Bytes& a, const Bytes& b) {
  for (size_t m = 0; m < kAllocations; ++m) {
    for (size_t i = 0; i < kBytes; ++i) {
      if (a[m][i] != 0 && b[m][i] != 0 && (a[m][i] != b[m][i] || a[m][i] == 4)) return true;
    }
  }
  return false;
}

/// Also: sorted, disjoint, as few entries as there can be.
void expect_equal(const AccessSummary& summary, const Bytes& bytes) {
  Bytes found{};
  const AccessSummary::Entry* last = nullptr;
  for (const AccessSummary::Entry& entry : summary.entries) {
    ASSERT_LT(entry.begin, entry.end);
    if (last != nullptr && last->allocation == entry.allocation) {
      ASSERT_LE(last->end, entry.begin);
      ASSERT_TRUE(last->end < entry.begin || last->effect != entry.effect) << "could be one entry";
    } else if (last != nullptr) {
      ASSERT_LT(last->allocation, entry.allocation);
    }
    for (size_t b = entry.begin; b < entry.end; ++b)
      found[entry.allocation - 10][b] = 1 << static_cast<int>(entry.effect);
    last = &entry;
  }
  ASSERT_EQ(found, bytes);
}

TEST(Summary, RandomPlansAgreeWithTheDefinition) {
  std::mt19937 rng(3);
  const Memory memory;
  int conflicts = 0;
  for (int i = 0; i < 20000; ++i) {
    const backend::PlanData a = random_plan(rng, memory), b = random_plan(rng, memory);
    const Bytes a_bytes = touched(a, memory), b_bytes = touched(b, memory);
    const AccessSummary a_summary = graph::summarize(a), b_summary = graph::summarize(b);
    ASSERT_NO_FATAL_FAILURE(expect_equal(a_summary, a_bytes));
    const bool expected = conflict(a_bytes, b_bytes);
    conflicts += expected;
    ASSERT_EQ(graph::conflicts(a_summary, b_summary), expected) << i;
    ASSERT_EQ(graph::conflicts(b_summary, a_summary), expected) << i;
  }
  EXPECT_GT(conflicts, 2000);
  EXPECT_LT(conflicts, 18000);
}

constexpr backend::ArgumentSpec kSpecs[] = {{"rows", Access::in, true},
                                            {"whole", Access::out},
                                            {"live", Access::out, true},
                                            {"both", Access::inout, true},
                                            {"status", Access::accumulate}};
constexpr backend::OpSchema kOp{"op", kSpecs};

// Byte by byte: what is read before it has been written whole, and what has been in the end.
TEST(Summary, ValuesOfRandomPlansAgreeWithTheDefinition) {
  std::mt19937 rng(5);
  const Memory memory;
  backend::Kernel kernel;
  kernel.op = &kOp;
  uint64_t reads = 0, spared = 0, whole = 0;
  for (int i = 0; i < 20000; ++i) {
    backend::PlanData plan;
    plan.arena_bytes = kBytes;
    Bytes read{}, written{};  // 1: it is
    const auto bind = [&](Access access, size_t bytes) {
      const uint32_t which = rng() % (kAllocations + 1);
      const size_t begin = rng() % (kBytes - bytes + 1);
      plan.args.push_back(
          {{which == kAllocations ? nullptr : &memory.allocations[which], begin, bytes}, access, false});
    };
    const auto each = [&](const backend::Argument& arg, const auto& visit) {
      if (arg.view.allocation == nullptr) return;
      const auto row = static_cast<size_t>(arg.view.allocation - memory.allocations.data());
      for (size_t b = arg.view.offset_bytes; b < arg.view.offset_bytes + arg.view.bytes; ++b)
        visit(read[row][b], written[row][b]);
    };
    const auto run = [&](uint32_t first, bool live) {
      for (uint32_t a = 0; a < std::size(kSpecs); ++a) {
        if (kSpecs[a].access != Access::in && kSpecs[a].access != Access::inout) continue;
        each(plan.args[first + a], [&](int& is_read, int& is_written) {
          (is_written ? spared : reads) += 1;
          if (!is_written) is_read = 1;
        });
      }
      for (uint32_t a = 0; a < std::size(kSpecs); ++a) {
        if (kSpecs[a].access != Access::out || (live && kSpecs[a].rows)) continue;
        each(plan.args[first + a], [&](int&, int& is_written) { is_written = 1; });
      }
    };
    for (uint32_t c = rng() % 5; c > 0; --c) {
      backend::PlanCommand& command = plan.commands.emplace_back();
      command.args.first = static_cast<uint32_t>(plan.args.size());
      const bool live = rng() % 2 == 0, group = rng() % 3 == 0;
      const uint32_t members = group ? 1 + rng() % 3 : 1;
      for (uint32_t m = 0; m < members; ++m) {
        if (group) {
          plan.members.emplace_back();
          plan.members.back().kernel = &kernel;
          plan.members.back().args = {static_cast<uint32_t>(plan.args.size()), std::size(kSpecs)};
        }
        for (const backend::ArgumentSpec& spec : kSpecs) bind(spec.access, rng() % 16);
      }
      if (live) {
        command.live_arg = static_cast<uint32_t>(plan.args.size()) - command.args.first;
        bind(Access::in, 4);
        each(plan.args.back(), [](int& is_read, int& is_written) { is_read |= !is_written; });
      }
      command.args.count = static_cast<uint32_t>(plan.args.size()) - command.args.first;
      command.kernel = group ? nullptr : &kernel;
      if (group) {
        command.kind = backend::CommandKind::fused_group;
        command.group = static_cast<uint32_t>(plan.groups.size());
        plan.groups.emplace_back().members = {static_cast<uint32_t>(plan.members.size()) - members, members};
      }
      for (uint32_t m = 0; m < members; ++m)
        run(command.args.first + m * static_cast<uint32_t>(std::size(kSpecs)), live);
    }
    const bool arena = rng() % 2 == 0;
    const Allocation elsewhere{99};
    const graph::ValueSummary found = graph::summarize_values(
        plan, arena ? backend::BufferView{&elsewhere, 64, 128} : backend::BufferView{});
    Bytes found_read{}, found_whole{};
    for (const AccessSummary::Entry& entry : found.reads) {
      for (size_t b = entry.begin; b < entry.end; ++b) found_read.at(entry.allocation - 10).at(b) = 1;
    }
    bool saw_arena = false;
    for (const AccessSummary::Entry& entry : found.whole) {
      if (entry.allocation == 99) {
        saw_arena = entry.begin == 64 && entry.end == 64 + kBytes;
        continue;
      }
      for (size_t b = entry.begin; b < entry.end; ++b) found_whole.at(entry.allocation - 10).at(b) = 1;
    }
    ASSERT_EQ(found_read, read) << i;
    ASSERT_EQ(found_whole, written) << i;
    ASSERT_EQ(saw_arena, arena);
    whole += !found.whole.empty();
  }
  EXPECT_GT(reads, 10000u);
  EXPECT_GT(spared, 10000u);
  EXPECT_GT(whole, 1000u);
}

TEST(Summary, TheArenaCountsWhenItsMemoryIsGiven) {
  const Memory memory;
  backend::PlanData plan;
  plan.arena_bytes = 32;
  plan.args.push_back({{nullptr, 0, 16}, Access::out, false});
  plan.args.push_back({{&memory.allocations[0], 0, 8}, Access::in, false});
  plan.commands.emplace_back().args = {0, 2};
  EXPECT_EQ(graph::summarize(plan).entries, (std::vector<AccessSummary::Entry>{{10, 0, 8, Effect::read}}));
  const AccessSummary whole = graph::summarize(plan, {&memory.allocations[1], 64, 128});
  EXPECT_EQ(whole.entries,
            (std::vector<AccessSummary::Entry>{{10, 0, 8, Effect::read}, {11, 64, 96, Effect::write}}));
  EXPECT_TRUE(graph::conflicts(whole, whole));
  EXPECT_FALSE(graph::conflicts(graph::summarize(plan), graph::summarize(plan)));
}

}  // namespace
}  // namespace refrain::null_tests

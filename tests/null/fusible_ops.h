// Ops over rows of u32 that can share tiles, for tests of fusing: each mixes what it reads so that any wrong,
// early or late value shows in all that follows. Each row is `units` equal parts.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "tests/null/test_ops.h"

namespace refrain::null_tests {

struct RowConstants {
  uint32_t salt = 0;
  uint32_t columns = 0;  ///< elements of a row
  uint32_t units = 0;    ///< of a row; divides columns
  uint32_t others = 0;   ///< elements of the argument that has no such rows, or of its row
};

/// One call on the rectangle.
struct Region {
  const TileArgs& args;
  uint32_t row_begin = 0, row_end = 0, unit_begin = 0, unit_end = 0;
  const RowConstants& c = args.constants_as<RowConstants>();

  /// Calls `each(row, unit, first, last)` with the elements of each unit.
  template <class Each>
  void units(Each each) const {
    const uint32_t width = c.columns / c.units;
    for (uint32_t row = row_begin; row < row_end; ++row) {
      for (uint32_t unit = unit_begin; unit < unit_end; ++unit) {
        const uint32_t first = row * c.columns + unit * width;
        each(row, unit, first, first + width);
      }
    }
  }
  template <class Each>
  void elements(Each each) const {
    units([&](uint32_t, uint32_t, uint32_t first, uint32_t last) {
      for (uint32_t i = first; i < last; ++i) each(i);
    });
  }
};

inline uint32_t unit_count(const OpCall& call) { return call.constants_as<RowConstants>().units; }
inline backend::Cost row_cost(const OpCall& call) {
  // From cheap to what one worker must not have alone.
  const auto& c = call.constants_as<RowConstants>();
  const uint64_t each = call.op->iteration == backend::Iteration::contraction ? 2048u << c.salt % 7 : 8;
  return {0, each * c.columns * static_cast<uint64_t>(call.args[0].shape[0])};
}
constexpr OpSchema row_op(std::string_view name, std::span<const ArgumentSpec> args, backend::Iteration how) {
  return {.name = name,
          .args = args,
          .constants_bytes = sizeof(RowConstants),
          .cost = row_cost,
          .iteration = how,
          .units = unit_count};
}

// output[r][u] from all of input[r] and one element of weight.
inline constexpr ArgumentSpec kProjectArgs[] = {
    {"input", Access::in, true}, {"weight", Access::in}, {"output", Access::out, true, false, 0, true}};
inline constexpr OpSchema kProject = row_op("project", kProjectArgs, backend::Iteration::contraction);

// Each vector of a row from all of it.
inline constexpr ArgumentSpec kNormArgs[] = {{"input", Access::in, true, false, 0, true},
                                             {"output", Access::out, true, false, 1, true}};
inline constexpr OpSchema kNorm = row_op("norm", kNormArgs, backend::Iteration::row_reduction);

// The same of whole rows, and a sum of each: one unit.
inline constexpr ArgumentSpec kNormSumArgs[] = {{"input", Access::in, true, false, 0, true},
                                                {"output", Access::out, true, false, 0, true},
                                                {"sum", Access::out, true}};
inline constexpr OpSchema kNormSum = row_op("norm_sum", kNormSumArgs, backend::Iteration::row_reduction);

inline constexpr ArgumentSpec kBlendArgs[] = {{"a", Access::in, true, false, 0, true},
                                              {"b", Access::in, true, false, 0, true},
                                              {"output", Access::out, true, false, 3, true}};
inline constexpr OpSchema kBlend = row_op("blend", kBlendArgs, backend::Iteration::elementwise);

// By one element a row: what `factor` is a part of is not divided.
inline constexpr ArgumentSpec kScaleArgs[] = {{"input", Access::in, true, false, 0, true},
                                              {"factor", Access::in, true},
                                              {"output", Access::out, true, false, 1, true}};
inline constexpr OpSchema kScale = row_op("scale", kScaleArgs, backend::Iteration::elementwise);

inline constexpr ArgumentSpec kAccumulateArgs[] = {{"input", Access::in, true, false, 0, true},
                                                   {"target", Access::inout, true, false, 0, true}};
inline constexpr OpSchema kAccumulate =
    row_op("accumulate", kAccumulateArgs, backend::Iteration::elementwise);

// Two values of each head.
inline constexpr ArgumentSpec kForkArgs[] = {{"input", Access::in, true, false, 0, true},
                                             {"first", Access::out, true, false, 0, true},
                                             {"second", Access::out, true, false, 0, true}};
inline constexpr OpSchema kFork = row_op("fork", kForkArgs, backend::Iteration::per_head);

// Elements of rows go to places of their own in `target`, as in a cache.
inline constexpr ArgumentSpec kStoreArgs[] = {{"value", Access::in, true, false, 0, true},
                                              {"target", Access::inout}};
inline constexpr OpSchema kStore = row_op("store", kStoreArgs, backend::Iteration::scatter);

// u32 to u64 and back: units are the same, bytes are not.
inline constexpr ArgumentSpec kWidenArgs[] = {{"input", Access::in, true, false, 0, true},
                                              {"output", Access::out, true, false, 0, true}};
inline constexpr OpSchema kWiden = row_op("widen", kWidenArgs, backend::Iteration::elementwise);
inline constexpr OpSchema kNarrow = row_op("narrow", kWidenArgs, backend::Iteration::elementwise);

// A live count: 1 to 8.
inline constexpr ArgumentSpec kCountArgs[] = {{"input", Access::in}, {"count", Access::out}};
inline constexpr OpSchema kCount{"count", kCountArgs, sizeof(RowConstants)};

inline void project(const Region& region) {
  const RowConstants& c = region.c;
  const auto *input = region.args.arg<uint32_t>(0), *weight = region.args.arg<uint32_t>(1);
  auto* output = region.args.arg<uint32_t>(2);
  region.units([&](uint32_t row, uint32_t unit, uint32_t first, uint32_t) {
    uint32_t sum = c.salt;
    for (uint32_t i = 0; i < c.others; ++i) sum = mixed(sum, input[row * c.others + i]);
    output[first] = mixed(sum, weight[0] + unit);
  });
}
inline void norm(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto* output = region.args.arg<uint32_t>(1);
  region.units([&](uint32_t, uint32_t, uint32_t first, uint32_t last) {
    uint32_t sum = region.c.salt;
    for (uint32_t i = first; i < last; ++i) sum = mixed(sum, input[i]);
    for (uint32_t i = first; i < last; ++i) output[i] = mixed(input[i], sum);
  });
}
inline void norm_sum(const Region& region) {
  norm(region);
  const auto* output = region.args.arg<uint32_t>(1);
  auto* sum = region.args.arg<uint32_t>(2);
  region.units([&](uint32_t row, uint32_t, uint32_t first, uint32_t last) {
    sum[row * region.c.others] = output[first];
    for (uint32_t i = 1; i < region.c.others; ++i)
      sum[row * region.c.others + i] = mixed(output[last - 1], i);
  });
}
/// As norm, with its sums in scratch.
inline void norm_in_scratch(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto* output = region.args.arg<uint32_t>(1);
  auto* sum = reinterpret_cast<uint32_t*>(region.args.scratch);
  region.units([&](uint32_t, uint32_t, uint32_t first, uint32_t last) {
    *sum = region.c.salt;
    for (uint32_t i = first; i < last; ++i) *sum = mixed(*sum, input[i]);
    for (uint32_t i = first; i < last; ++i) output[i] = mixed(input[i], *sum);
  });
}
inline void blend(const Region& region) {
  const auto *a = region.args.arg<uint32_t>(0), *b = region.args.arg<uint32_t>(1);
  auto* output = region.args.arg<uint32_t>(2);
  region.elements([&](uint32_t i) { output[i] = mixed(mixed(a[i], b[i]), region.c.salt); });
}
inline void scale(const Region& region) {
  const auto *input = region.args.arg<uint32_t>(0), *factor = region.args.arg<uint32_t>(1);
  auto* output = region.args.arg<uint32_t>(2);
  const uint32_t width = region.c.others;
  region.units([&](uint32_t row, uint32_t, uint32_t first, uint32_t last) {
    for (uint32_t i = first; i < last; ++i) output[i] = mixed(input[i], factor[(row + 1) * width - 1]);
  });
}
inline void accumulate(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto* target = region.args.arg<uint32_t>(1);
  region.elements([&](uint32_t i) { target[i] = mixed(mixed(target[i], input[i]), region.c.salt); });
}
inline void fork(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto *one = region.args.arg<uint32_t>(1), *two = region.args.arg<uint32_t>(2);
  region.units([&](uint32_t, uint32_t, uint32_t first, uint32_t last) {
    for (uint32_t i = first; i < last; ++i) {
      one[i] = mixed(input[i], input[first + last - 1 - i]);
      two[i] = mixed(one[i], region.c.salt);
    }
  });
}
inline void store(const Region& region) {
  const auto* value = region.args.arg<uint32_t>(0);
  auto* target = region.args.arg<uint32_t>(1);
  region.elements([&](uint32_t i) {
    uint32_t& at = target[(i + region.c.salt) % region.c.others];
    at = mixed(at, value[i]);
  });
}
inline void widen(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto* output = region.args.arg<uint64_t>(1);
  region.elements([&](uint32_t i) { output[i] = uint64_t{mixed(input[i], region.c.salt)} << 32 | input[i]; });
}
inline void narrow(const Region& region) {
  const auto* input = region.args.arg<uint64_t>(0);
  auto* output = region.args.arg<uint32_t>(1);
  region.elements([&](uint32_t i) {
    output[i] = mixed(static_cast<uint32_t>(input[i]), static_cast<uint32_t>(input[i] >> 32));
  });
}
inline void run_count(const TileArgs& args, uint32_t, uint32_t) {
  args.arg<uint32_t>(1)[0] = 1 + args.arg<uint32_t>(0)[0] % 8;
}

inline uint32_t rows_per_block(const RowConstants& c) { return 1 + c.salt % 3; }

template <void (*Run)(const Region&)>
void run_region(const TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
                uint32_t unit_end) {
  Run({args, row_begin, row_end, unit_begin, unit_end});
}
/// A tile is a block of rows.
template <void (*Run)(const Region&)>
void run_blocks(const TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<RowConstants>();
  const uint32_t rows = rows_per_block(c);
  Run({args, begin * rows, std::min(end * rows, args.live_rows), 0, c.units});
}
template <void (*Run)(const Region&)>
inline constexpr backend::TileKernel kRowTiles{nullptr, nullptr, run_blocks<Run>, run_region<Run>};
inline constexpr backend::TileKernel kCountTiles{nullptr, nullptr, run_count};

inline backend::Launch row_launch(const OpCall& call, const backend::DeviceInfo&) {
  return {static_cast<uint32_t>(call.args[0].shape[0]), rows_per_block(call.constants_as<RowConstants>()), 1,
          0};
}
inline backend::Launch row_launch_with_scratch(const OpCall& call, const backend::DeviceInfo& info) {
  backend::Launch launch = row_launch(call, info);
  launch.scratch_bytes = 64;
  return launch;
}
inline bool some(const OpCall& call) { return call.constants_as<RowConstants>().salt % 8 == 0; }
inline bool some_others(const OpCall& call) { return call.constants_as<RowConstants>().salt % 8 == 1; }

template <void (*Run)(const Region&)>
constexpr backend::Kernel row_kernel(std::string_view name, const OpSchema& op, bool regions = true) {
  return {name, &op, "test", 0, 0, any, row_launch, &kRowTiles<Run>, regions};
}

/// These ops, of test_ops.h the ones that record what random graphs are made of.
inline std::span<const backend::Kernel> fusible_kernels() {
  static const std::vector<backend::Kernel> kTable = [] {
    std::vector<backend::Kernel> table(std::begin(kKernels), std::end(kKernels));
    backend::Kernel whole = row_kernel<norm>("norm_whole", kNorm, /*regions=*/false);
    whole.accepts = some;
    backend::Kernel scratch = row_kernel<norm_in_scratch>("norm_scratch", kNorm);
    scratch.accepts = some_others;
    scratch.launch = row_launch_with_scratch;
    backend::Kernel count{"count", &kCount, "test", 0, 0, any, one_tile, &kCountTiles};
    table.insert(table.end(),
                 {whole, scratch, row_kernel<norm>("norm", kNorm), row_kernel<norm_sum>("norm_sum", kNormSum),
                  row_kernel<project>("project", kProject), row_kernel<blend>("blend", kBlend),
                  row_kernel<scale>("scale", kScale), row_kernel<accumulate>("accumulate", kAccumulate),
                  row_kernel<fork>("fork", kFork), row_kernel<store>("store", kStore),
                  row_kernel<widen>("widen", kWiden), row_kernel<narrow>("narrow", kNarrow), count});
    return table;
  }();
  return kTable;
}

}  // namespace refrain::null_tests

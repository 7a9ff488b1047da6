// Rope: schema, checks and recording.
#include "refrain/ops/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "refrain/core/checked.h"
#include "refrain/ops/check.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

enum : size_t { kInput, kRows, kFrequencies, kOutput };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "frequencies", .access = backend::Access::in},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b1,
     .units = true,
     .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kInput, 3, 3, "[rows, heads, head_dim]");
  const Shape& input = call.args[kInput].shape;
  expect_shape(call, kRows, {input[0], 4});
  expect_weight(call, kFrequencies, {backend::Use::vector});
  expect_rank(call, kFrequencies, 1, 1, "[pairs]");
  const Shape& frequencies = call.args[kFrequencies].shape;
  if (frequencies[0] > input[2] / 2) {
    fail(call, kFrequencies, "at most half of head_dim, [" + std::to_string(input[2] / 2) + "]",
         to_string(frequencies));
  }
  expect_shape(call, kOutput, input);
  const auto& c = call.constants_as<RopeConstants>();
  if (!std::isfinite(c.scale)) fail(call, "scale", "a finite number", std::to_string(c.scale));
  if (!std::isfinite(c.growth)) fail(call, "growth", "a finite number", std::to_string(c.growth));
  if (c.growth != 0 && c.period == 0) fail(call, "period", "1 or more with growth", "0");
}

void complete(const backend::OpCall& call, RopeConstants& c) {
  const Shape& input = call.args[kInput].shape;
  c.rows = dimension(input, 0);
  c.heads = dimension(input, 1);
  c.head_dim = dimension(input, 2);
  c.pairs = dimension(call.args[kFrequencies].shape, 0);
}

uint32_t rows_per_block(const RopeConstants& constants) {
  return rows_of_block(uint64_t{constants.heads} * constants.head_dim, constants.rows);
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& constants = call.constants_as<RopeConstants>();
  const uint64_t rotations = uint64_t{constants.rows} * constants.heads * constants.pairs;
  backend::Cost result;
  for (const backend::ArgumentInfo& argument : call.args) result.bytes += argument_bytes(argument);
  result.flops = 6 * rotations;
  return result;
}

}  // namespace

constinit const backend::OpSchema rope_schema = {
    .name = "rope",
    .args = kArgs,
    .constants_bytes = sizeof(RopeConstants),
    .check = check,
    .complete = complete_as<RopeConstants, complete>,
    .cost = cost,
    .reference = rope_reference,
    .iteration = backend::Iteration::per_head,
    .units = [](const backend::OpCall& call) { return call.constants_as<RopeConstants>().heads; },
};

void rope(CommandEncoder& encoder, const Rope& args) {
  const Operand operands[] = {args.input, args.rows, args.frequencies, args.output};
  dispatch(encoder, rope_schema, operands,
           RopeConstants{.interleaved = args.interleaved ? 1u : 0u,
                         .scale = args.scale,
                         .growth = args.growth,
                         .period = args.period});
}

backend::Launch rope_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& constants = call.constants_as<RopeConstants>();
  backend::Launch launch;
  launch.rows = constants.rows;
  launch.rows_per_block = rows_per_block(constants);
  launch.row_scratch_bytes = size_t{2} * constants.pairs * sizeof(float);
  launch.scratch_bytes = align_up(launch.row_scratch_bytes, 64);
  return launch;
}

void rope_angles(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end) {
  const auto& c = args.constants_as<RopeConstants>();
  const StepRow* rows = args.arg<const StepRow>(kRows);
  const float* frequencies = args.arg<const float>(kFrequencies);
  float* cosines = reinterpret_cast<float*>(args.scratch);
  for (size_t r = row_begin; r < row_end; ++r) {
    const float position = static_cast<float>(rows[r].position);
    const float scale = c.scale_at(rows[r].position);
    float* sines = cosines + c.pairs;
    for (size_t i = 0; i < c.pairs; ++i) {
      const float angle = position * frequencies[i];
      cosines[i] = std::cos(angle) * scale;
      sines[i] = std::sin(angle) * scale;
    }
    cosines = sines + c.pairs;
  }
}

void rope_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end,
                void (*region)(const backend::TileArgs&, uint32_t, uint32_t, uint32_t, uint32_t)) {
  const auto& c = args.constants_as<RopeConstants>();
  const uint32_t block = rows_per_block(c);
  // Row by row, so that the angles stay in the nearest cache.
  for (uint32_t r = begin * block; r < std::min(end * block, args.live_rows); ++r) {
    rope_angles(args, r, r + 1);
    region(args, r, r + 1, 0, c.heads);
  }
}

}  // namespace refrain::ops

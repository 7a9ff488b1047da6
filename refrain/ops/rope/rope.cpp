// Rope: schema, checks and recording.
#include "refrain/ops/rope/rope.h"

#include <algorithm>
#include <string>

#include "refrain/core/checked.h"
#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kInput, kRows, kFrequencies, kOutput };

constexpr device::ArgumentSpec kArgs[] = {
    {.name = "input", .access = device::Access::in, .rows = true, .units = true},
    {.name = "rows", .access = device::Access::in, .rows = true},
    {.name = "frequencies", .access = device::Access::in},
    {.name = "output", .access = device::Access::out, .rows = true, .in_place = 0b1, .units = true},
};

void check(const device::OpCall& call) {
  expect_call(call);
  expect_rank(call, kInput, 3, 3, "[rows, heads, head_dim]");
  const Shape& input = call.args[kInput].shape;
  expect_dtype(call, kInput, DType::f32);
  expect_tensor(call, kRows, DType::u32, {input[0], 4});
  expect_weight(call, kFrequencies, {WeightFormat::plain}, {device::Use::vector});
  expect_rank(call, kFrequencies, 1, 1, "[pairs]");
  const Shape& frequencies = call.args[kFrequencies].shape;
  if (frequencies[0] > input[2] / 2) {
    fail(call, kFrequencies, "at most half of head_dim, [" + std::to_string(input[2] / 2) + "]",
         to_string(frequencies));
  }
  expect_tensor(call, kOutput, DType::f32, input);
  const auto& constants = call.constants_as<RopeConstants>();
  expect_constant(call, "rows", static_cast<uint64_t>(input[0]), constants.rows);
  expect_constant(call, "heads", static_cast<uint64_t>(input[1]), constants.heads);
  expect_constant(call, "head_dim", static_cast<uint64_t>(input[2]), constants.head_dim);
  expect_constant(call, "pairs", static_cast<uint64_t>(frequencies[0]), constants.pairs);
}

device::Cost cost(const device::OpCall& call) {
  const auto& constants = call.constants_as<RopeConstants>();
  const uint64_t rotations = uint64_t{constants.rows} * constants.heads * constants.pairs;
  device::Cost result;
  for (const device::ArgumentInfo& argument : call.args) result.bytes += argument_bytes(argument);
  result.flops = 6 * rotations;
  return result;
}

}  // namespace

constinit const device::OpSchema rope_schema = {
    .name = "rope",
    .doc =
        "Rotates the pairs of every head by the angle of the row's position. "
        "angle = position * frequencies[i] in float32; x' = x cos - y sin, y' = y cos + x sin; the rest is "
        "copied. "
        "input f32 [R, H, D]; rows u32 [R, 4]; frequencies [F], 2 F <= D; output f32 [R, H, D], may be "
        "input. "
        "Accuracy 2^-22 (|x| + |y|) for the given angle. Su et al., RoFormer, 2021.",
    .args = kArgs,
    .constants_bytes = sizeof(RopeConstants),
    .check = check,
    .cost = cost,
    .reference = rope_reference,
    .iteration = device::Iteration::per_head,
    .units = [](const device::OpCall& call) { return call.constants_as<RopeConstants>().heads; },
};

void rope(CommandEncoder& encoder, const Rope& args) {
  const Shape& input = args.input.shape();
  const RopeConstants constants = {
      .rows = dimension(input, 0),
      .heads = dimension(input, 1),
      .head_dim = dimension(input, 2),
      .pairs = dimension(args.frequencies.shape(), 0),
      .interleaved = args.interleaved ? 1u : 0u,
  };
  const Operand operands[] = {args.input, args.rows, args.frequencies, args.output};
  dispatch(encoder, rope_schema, operands, constants);
}

uint32_t rope_rows_per_block(const RopeConstants& constants) {
  // About 2^15 elements, some 10 us.
  const uint64_t row_elements = uint64_t{constants.heads} * constants.head_dim;
  return static_cast<uint32_t>(std::clamp<uint64_t>(32768 / row_elements, 1, constants.rows));
}

device::Launch rope_launch(const device::OpCall& call, const device::DeviceInfo&) {
  const auto& constants = call.constants_as<RopeConstants>();
  device::Launch launch;
  launch.rows = constants.rows;
  launch.rows_per_block = rope_rows_per_block(constants);
  launch.scratch_bytes = align_up(size_t{2} * constants.pairs * sizeof(float), 64);
  return launch;
}

}  // namespace refrain::ops

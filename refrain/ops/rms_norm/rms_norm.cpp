// rms_norm: schema and recording.
#include "refrain/ops/rms_norm/rms_norm.h"

#include <fmt/format.h>

#include <cmath>

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "weight", .access = backend::Access::in, .optional = true},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b1,
     .units = true,
     .dtypes = {DType::f32}},
};

RmsNormConstants constants_of(const Shape& shape, float eps) {
  const size_t rank = shape.rank();
  return {dimension(shape, 0), rank == 3 ? dimension(shape, 1) : 1, rank > 0 ? dimension(shape, rank - 1) : 0,
          eps};
}

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_dtype(call, 0, DType::f32);
  expect_rank(call, 0, 2, 3, "[rows, columns] or [rows, vectors, columns]");
  const Shape& shape = call.args[0].shape;
  if (call.args[1].bound) {
    expect_weight(call, 1, {backend::Use::vector});
    expect_shape(call, 1, Shape{shape.back()});
  }
  expect_tensor(call, 2, DType::f32, shape);
  const auto& c = call.constants_as<RmsNormConstants>();
  const RmsNormConstants expected = constants_of(shape, c.eps);
  expect_constant(call, "rows", expected.rows, c.rows);
  expect_constant(call, "vectors", expected.vectors, c.vectors);
  expect_constant(call, "columns", expected.columns, c.columns);
  if (!(c.eps >= 0) || std::isinf(c.eps)) {
    fail(call, "eps", "a finite value, not negative", fmt::to_string(c.eps));
  }
}

backend::Cost cost(const backend::OpCall& call) {
  uint64_t bytes = 0;
  for (const backend::ArgumentInfo& argument : call.args) bytes += argument_bytes(argument);
  return {bytes, 4 * static_cast<uint64_t>(call.args[0].shape.elements())};
}

}  // namespace

void rms_norm_reference(const backend::TileArgs& args);

constinit const backend::OpSchema rms_norm_schema{
    .name = "rms_norm",
    .doc =
        "Scales each vector to a root mean square of one, then by a weight. output[i] = input[i] / "
        "sqrt(mean(input^2) + eps) * weight[i]. input, output: f32 [R, K] or [R, H, K]; weight: Weight [K] "
        "packed "
        "for vector, optional. output may be input. Relative error below (K / 32 + 12) * 2^-24.",
    .args = kArgs,
    .constants_bytes = sizeof(RmsNormConstants),
    .check = check,
    .cost = cost,
    .reference = rms_norm_reference,
    .iteration = backend::Iteration::row_reduction,
    .units = [](const backend::OpCall& call) { return call.constants_as<RmsNormConstants>().vectors; },
};

void rms_norm(CommandEncoder& encoder, const RmsNorm& args) {
  const Operand operands[] = {args.input, args.weight, args.output};
  dispatch(encoder, rms_norm_schema, operands, constants_of(args.input.shape(), args.eps));
}

}  // namespace refrain::ops

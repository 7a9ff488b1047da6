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

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, 0, 2, 3, "[rows, columns] or [rows, vectors, columns]");
  const Shape& shape = call.args[0].shape;
  if (call.args[1].bound) {
    expect_weight(call, 1, {backend::Use::vector});
    expect_shape(call, 1, Shape{shape.back()});
  }
  expect_shape(call, 2, shape);
  const float eps = call.constants_as<RmsNormConstants>().eps;
  if (!(eps >= 0) || std::isinf(eps)) fail(call, "eps", "a finite value, not negative", fmt::to_string(eps));
}

void complete(const backend::OpCall& call, RmsNormConstants& c) {
  const Shape& shape = call.args[0].shape;
  c.rows = dimension(shape, 0);
  c.vectors = shape.rank() == 3 ? dimension(shape, 1) : 1;
  c.columns = static_cast<uint32_t>(shape.back());
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
    .args = kArgs,
    .constants_bytes = sizeof(RmsNormConstants),
    .check = check,
    .complete = complete_as<RmsNormConstants, complete>,
    .cost = cost,
    .reference = rms_norm_reference,
    .iteration = backend::Iteration::row_reduction,
    .units = [](const backend::OpCall& call) { return call.constants_as<RmsNormConstants>().vectors; },
};

void rms_norm(CommandEncoder& encoder, const RmsNorm& args) {
  const Operand operands[] = {args.input, args.weight, args.output};
  dispatch(encoder, rms_norm_schema, operands, RmsNormConstants{.eps = args.eps});
}

}  // namespace refrain::ops

// gelu_mul: schema and recording.
#include "refrain/ops/gelu_mul/gelu_mul.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "gate", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "up", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b11,
     .units = true,
     .dtypes = {DType::f32}},
};

backend::Cost cost(const backend::OpCall& call) {
  const auto elements = static_cast<uint64_t>(call.args[0].shape.elements());
  return {3 * elements * sizeof(float), 8 * elements};
}

}  // namespace

void gelu_mul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema gelu_mul_schema{
    .name = "gelu_mul",
    .doc =
        "Multiplies by a gate weighted with the normal distribution. output[i] = gate[i] / (1 + exp(-2 u)) * "
        "up[i], "
        "u = sqrt(2 / pi) (gate[i] + 0.044715 gate[i]^3). gate, up, output: f32 [R, ...] of one shape. "
        "output may be "
        "gate or up. Relative error below 6e-7 + 2^-21 |2 u|.",
    .args = kArgs,
    .constants_bytes = sizeof(GeluMulConstants),
    .check = expect_elementwise_pair,
    .cost = cost,
    .reference = gelu_mul_reference,
    .iteration = backend::Iteration::elementwise,
    .units = [](const backend::OpCall& call) { return call.constants_as<GeluMulConstants>().columns; },
};

void gelu_mul(CommandEncoder& encoder, const GeluMul& args) {
  const Operand operands[] = {args.gate, args.up, args.output};
  dispatch(encoder, gelu_mul_schema, operands, elementwise_constants(args.gate.shape()));
}

}  // namespace refrain::ops

// silu_mul: schema and recording.
#include "refrain/ops/silu_mul/silu_mul.h"

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
  return {3 * elements * sizeof(float), 4 * elements};
}

}  // namespace

void silu_mul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema silu_mul_schema{
    .name = "silu_mul",
    .doc =
        "Multiplies by a sigmoid-weighted gate. output[i] = gate[i] / (1 + exp(-gate[i])) * up[i]. gate, up, "
        "output: f32 "
        "[R, ...] of one shape. output may be gate or up. Relative error below 6e-7.",
    .args = kArgs,
    .constants_bytes = sizeof(SiluMulConstants),
    .check = expect_elementwise_pair,
    .cost = cost,
    .reference = silu_mul_reference,
    .iteration = backend::Iteration::elementwise,
    .units = [](const backend::OpCall& call) { return call.constants_as<SiluMulConstants>().columns; },
};

void silu_mul(CommandEncoder& encoder, const SiluMul& args) {
  const Operand operands[] = {args.gate, args.up, args.output};
  dispatch(encoder, silu_mul_schema, operands, elementwise_constants(args.gate.shape()));
}

}  // namespace refrain::ops

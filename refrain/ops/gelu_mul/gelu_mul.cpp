// gelu_mul: schema and recording.
#include "refrain/ops/gelu_mul/gelu_mul.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr auto kArgs = binary_args("gate", "up");

}  // namespace

void gelu_mul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema gelu_mul_schema{
    .name = "gelu_mul",
    .args = kArgs,
    .constants_bytes = sizeof(GeluMulConstants),
    .check = expect_elementwise,
    .complete = complete_elementwise,
    .cost = elementwise_cost<8>,
    .reference = gelu_mul_reference,
    .iteration = backend::Iteration::elementwise,
    .units = elementwise_units,
};

void gelu_mul(CommandEncoder& encoder, const GeluMul& args) {
  const Operand operands[] = {args.gate, args.up, args.output};
  dispatch(encoder, gelu_mul_schema, operands, GeluMulConstants{});
}

}  // namespace refrain::ops

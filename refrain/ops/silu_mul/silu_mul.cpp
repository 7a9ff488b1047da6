// silu_mul: schema and recording.
#include "refrain/ops/silu_mul/silu_mul.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr auto kArgs = binary_args("gate", "up");

}  // namespace

void silu_mul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema silu_mul_schema{
    .name = "silu_mul",
    .args = kArgs,
    .constants_bytes = sizeof(SiluMulConstants),
    .check = expect_elementwise,
    .complete = complete_elementwise,
    .cost = elementwise_cost<4>,
    .reference = silu_mul_reference,
    .iteration = backend::Iteration::elementwise,
    .units = elementwise_units,
};

void silu_mul(CommandEncoder& encoder, const SiluMul& args) {
  const Operand operands[] = {args.gate, args.up, args.output};
  dispatch(encoder, silu_mul_schema, operands, SiluMulConstants{});
}

}  // namespace refrain::ops

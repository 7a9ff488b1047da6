// add: schema and recording.
#include "refrain/ops/add/add.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "a", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "b", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b11,
     .units = true,
     .dtypes = {DType::f32}},
};

backend::Cost cost(const backend::OpCall& call) {
  const auto elements = static_cast<uint64_t>(call.args[0].shape.elements());
  return {3 * elements * sizeof(float), elements};
}

}  // namespace

void add_reference(const backend::TileArgs& args);

constinit const backend::OpSchema add_schema{
    .name = "add",
    .doc =
        "Adds two tensors. output[i] = a[i] + b[i]. a, b, output: f32 [R, ...] of one shape. output may be a "
        "or b.",
    .args = kArgs,
    .constants_bytes = sizeof(AddConstants),
    .check = expect_elementwise_pair,
    .cost = cost,
    .reference = add_reference,
    .iteration = backend::Iteration::elementwise,
    .units = [](const backend::OpCall& call) { return call.constants_as<AddConstants>().columns; },
};

void add(CommandEncoder& encoder, const Add& args) {
  const Operand operands[] = {args.a, args.b, args.output};
  dispatch(encoder, add_schema, operands, elementwise_constants(args.a.shape()));
}

}  // namespace refrain::ops

// add: schema and recording.
#include "refrain/ops/add/add.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr auto kArgs = binary_args("a", "b");

}  // namespace

void add_reference(const backend::TileArgs& args);

constinit const backend::OpSchema add_schema{
    .name = "add",
    .args = kArgs,
    .constants_bytes = sizeof(AddConstants),
    .check = expect_elementwise,
    .complete = complete_elementwise,
    .cost = elementwise_cost<1>,
    .reference = add_reference,
    .iteration = backend::Iteration::elementwise,
    .units = elementwise_units,
};

void add(CommandEncoder& encoder, const Add& args) {
  const Operand operands[] = {args.a, args.b, args.output};
  dispatch(encoder, add_schema, operands, AddConstants{});
}

}  // namespace refrain::ops

// softcap: schema and recording.
#include "refrain/ops/softcap/softcap.h"

#include <fmt/format.h>

#include <cmath>

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

void check(const backend::OpCall& call) {
  expect_elementwise(call);
  const float cap = call.constants_as<SoftcapConstants>().cap;
  if (!(cap > 0) || std::isinf(cap)) fail(call, "cap", "a finite number above 0", fmt::to_string(cap));
}

}  // namespace

void softcap_reference(const backend::TileArgs& args);

constinit const backend::OpSchema softcap_schema{
    .name = "softcap",
    .args = kUnaryArgs,
    .constants_bytes = sizeof(SoftcapConstants),
    .check = check,
    .complete = complete_elementwise,
    .cost = elementwise_cost<24>,
    .reference = softcap_reference,
    .iteration = backend::Iteration::elementwise,
    .units = elementwise_units,
};

void softcap(CommandEncoder& encoder, const Softcap& args) {
  const Operand operands[] = {args.input, args.output};
  dispatch(encoder, softcap_schema, operands, SoftcapConstants{.cap = args.cap});
}

}  // namespace refrain::ops

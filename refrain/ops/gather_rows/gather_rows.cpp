// Gathering of rows: schema, checks and recording.
#include "refrain/ops/gather_rows/gather_rows.h"

#include <algorithm>

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kInput, kIndex, kInputRows, kStatus, kOutput };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .dtypes = {DType::f32}},
    {.name = "index", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "input_rows", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
    {.name = "output", .access = backend::Access::out, .rows = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kInput, 2, 2, "[rows, columns]");
  const Shape& input = call.args[kInput].shape;
  expect_rank(call, kIndex, 1, 1, "[output rows]");
  const int64_t output_rows = call.args[kIndex].shape[0];
  expect_shape(call, kInputRows, {1});
  expect_rank(call, kStatus, 1, 1, "[slots + 1]");
  expect_shape(call, kOutput, {output_rows, input[1]});
}

void complete(const backend::OpCall& call, GatherRowsConstants& c) {
  c = {.input_rows = dimension(call.args[kInput].shape, 0),
       .output_rows = dimension(call.args[kIndex].shape, 0),
       .columns = dimension(call.args[kInput].shape, 1),
       .status_word = dimension(call.args[kStatus].shape, 0) - 1};
}

backend::Cost cost(const backend::OpCall& call) {
  return {.bytes = 2 * argument_bytes(call.args[kOutput]) + argument_bytes(call.args[kIndex]), .flops = 0};
}

}  // namespace

constinit const backend::OpSchema gather_rows_schema = {
    .name = "gather_rows",
    .args = kArgs,
    .constants_bytes = sizeof(GatherRowsConstants),
    .check = check,
    .complete = complete_as<GatherRowsConstants, complete>,
    .cost = cost,
    .reference = gather_rows_reference,
};

void gather_rows(CommandEncoder& encoder, const GatherRows& args) {
  const Operand operands[] = {args.input, args.index, args.input_rows, args.status, args.output};
  dispatch(encoder, gather_rows_schema, operands, GatherRowsConstants{});
}

}  // namespace refrain::ops

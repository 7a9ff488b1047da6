// embedding: schema and recording.
#include "refrain/ops/embedding/embedding.h"

#include <fmt/format.h>

#include <cmath>

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "weight", .access = backend::Access::in},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
    {.name = "output", .access = backend::Access::out, .rows = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_weight(call, 0, {backend::Use::gather});
  expect_rank(call, 0, 2, 2, "[vocabulary, columns]");
  expect_dtype(call, 1, DType::u32);
  expect_rank(call, 1, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[1].shape[0];
  expect_shape(call, 1, Shape{rows, 4});
  expect_dtype(call, 2, DType::u32);
  expect_rank(call, 2, 1, 1, "[slots + 1]");
  const Shape& weight = call.args[0].shape;
  expect_tensor(call, 3, DType::f32, Shape{rows, weight[1]});
  const auto& c = call.constants_as<EmbeddingConstants>();
  expect_constant(call, "rows", static_cast<uint64_t>(rows), c.rows);
  expect_constant(call, "slots", static_cast<uint64_t>(call.args[2].shape[0] - 1), c.slots);
  expect_constant(call, "vocabulary", dimension(weight, 0), c.vocabulary);
  expect_constant(call, "columns", dimension(weight, 1), c.columns);
  expect_format(call, 0, c.format);
  if (!std::isfinite(c.scale)) fail(call, "scale", "a finite number", fmt::to_string(c.scale));
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& c = call.constants_as<EmbeddingConstants>();
  const uint64_t row_bytes = argument_bytes(call.args[0]) / c.vocabulary;
  const uint64_t decode_flops = c.format->bits != 0 ? uint64_t{2} * c.rows * c.columns : 0;
  return {c.rows * row_bytes + argument_bytes(call.args[1]) + argument_bytes(call.args[3]), decode_flops};
}

}  // namespace

void embedding_reference(const backend::TileArgs& args);

constinit const backend::OpSchema embedding_schema{
    .name = "embedding",
    .doc =
        "Fetches the weight row of each row's token. output[r] = weight[rows[r].token] * scale. weight: "
        "Weight [V, K] of any format, packed for gather; rows: u32 [R, 4]; status: u32 [S + 1]; output: f32 "
        "[R, K]. No aliasing. A token or slot out of range gives zeros and a status bit. Exactly what the "
        "format decodes to; a scale other than 1 rounds once more.",
    .args = kArgs,
    .constants_bytes = sizeof(EmbeddingConstants),
    .check = check,
    .cost = cost,
    .reference = embedding_reference,
};

void embedding(CommandEncoder& encoder, const Embedding& args) {
  const Operand operands[] = {args.weight, args.rows, args.status, args.output};
  EmbeddingConstants constants;
  constants.scale = args.scale;
  constants.rows = dimension(args.rows.shape(), 0);
  constants.vocabulary = dimension(args.weight.shape(), 0);
  constants.columns = dimension(args.weight.shape(), 1);
  constants.slots = dimension(args.status.shape(), 0) - 1;
  constants.format = args.weight.format();
  dispatch(encoder, embedding_schema, operands, constants);
}

}  // namespace refrain::ops

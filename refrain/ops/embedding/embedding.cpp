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
  expect_rank(call, 1, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[1].shape[0];
  expect_shape(call, 1, Shape{rows, 4});
  expect_rank(call, 2, 1, 1, "[slots + 1]");
  const Shape& weight = call.args[0].shape;
  expect_shape(call, 3, Shape{rows, weight[1]});
  const float scale = call.constants_as<EmbeddingConstants>().scale;
  if (!std::isfinite(scale)) fail(call, "scale", "a finite number", fmt::to_string(scale));
}

void complete(const backend::OpCall& call, EmbeddingConstants& c) {
  const Shape& weight = call.args[0].shape;
  c.rows = dimension(call.args[1].shape, 0);
  c.slots = dimension(call.args[2].shape, 0) - 1;
  c.vocabulary = dimension(weight, 0);
  c.columns = dimension(weight, 1);
  c.format = call.args[0].weight->format;
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
    .args = kArgs,
    .constants_bytes = sizeof(EmbeddingConstants),
    .check = check,
    .complete = complete_as<EmbeddingConstants, complete>,
    .cost = cost,
    .reference = embedding_reference,
};

void embedding(CommandEncoder& encoder, const Embedding& args) {
  const Operand operands[] = {args.weight, args.rows, args.status, args.output};
  dispatch(encoder, embedding_schema, operands, EmbeddingConstants{.scale = args.scale});
}

}  // namespace refrain::ops

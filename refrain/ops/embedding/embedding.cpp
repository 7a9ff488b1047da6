// embedding: schema and recording.
#include "refrain/ops/embedding/embedding.h"

#include <fmt/format.h>

#include <cmath>

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {"weight", backend::Access::in},
    {"rows", backend::Access::in, true},
    {"status", backend::Access::accumulate},
    {"output", backend::Access::out, true},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_weight(call, 0, {WeightFormat::plain, WeightFormat::mlx_affine}, {backend::Use::gather});
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
  const backend::WeightInfo& info = *call.args[0].weight;
  expect_constant(call, "rows", static_cast<uint64_t>(rows), c.rows);
  expect_constant(call, "slots", static_cast<uint64_t>(call.args[2].shape[0] - 1), c.slots);
  expect_constant(call, "vocabulary", dimension(weight, 0), c.vocabulary);
  expect_constant(call, "columns", dimension(weight, 1), c.columns);
  expect_constant(call, "dtype", static_cast<uint64_t>(info.dtype), c.dtype);
  expect_constant(call, "bits", info.format == WeightFormat::plain ? 0 : info.bits, c.bits);
  if (!std::isfinite(c.scale)) fail(call, "scale", "a finite number", fmt::to_string(c.scale));
  expect_constant(call, "group_size", info.format == WeightFormat::plain ? 0 : info.group_size, c.group_size);
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& c = call.constants_as<EmbeddingConstants>();
  const uint64_t row_bytes = argument_bytes(call.args[0]) / c.vocabulary;
  const uint64_t affine_flops = c.bits != 0 ? uint64_t{2} * c.rows * c.columns : 0;
  return {c.rows * row_bytes + argument_bytes(call.args[1]) + argument_bytes(call.args[3]), affine_flops};
}

}  // namespace

void embedding_reference(const backend::TileArgs& args);

constinit const backend::OpSchema embedding_schema{
    .name = "embedding",
    .doc =
        "Fetches the weight row of each row's token. output[r] = weight[rows[r].token] * scale. weight: "
        "Weight [V, "
        "K], bf16, "
        "f16, f32 or MLX affine, packed for gather; rows: u32 [R, 4]; status: u32 [S + 1]; output: f32 [R, "
        "K]. No "
        "aliasing. A token or slot out of range gives zeros and a status bit. Plain weights exact; "
        "affine ones "
        "scale * code + bias, each operation rounded to f32; so is the product with a scale other than 1.",
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
  if (const backend::WeightInfo* weight = args.weight.weight_info(); weight != nullptr) {
    constants.dtype = static_cast<uint32_t>(weight->dtype);
    if (weight->format != WeightFormat::plain) {
      constants.bits = weight->bits;
      constants.group_size = weight->group_size;
    }
  }
  dispatch(encoder, embedding_schema, operands, constants);
}

}  // namespace refrain::ops

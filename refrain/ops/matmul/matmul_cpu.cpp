// matmul: the portable kernel. Each weight row is widened to f32 once for all rows of a tile.
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/matmul/matmul_tiles.h"

namespace refrain::ops {
namespace {

/// Element k is summed in lane k % 16, lanes in halves.
inline float dot(const float* a, const float* b, size_t count) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes] = {};
  size_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  }
  for (size_t lane = 0; k + lane < count; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

bool accepts(const backend::OpCall& call) { return is_matrix(call.args[1]); }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<MatmulConstants>();
  return matmul_launch(c, c.columns * sizeof(float));
}

void region(const backend::TileArgs& args, const MatmulTile& t) {
  const auto& c = args.constants_as<MatmulConstants>();
  auto* weight_row = reinterpret_cast<float*>(args.scratch);
  const backend::WeightInfo weight = c.weight();
  const backend::WeightLayout& layout = matrix_layout(*c.format);
  for (size_t output = t.output; output < size_t{t.output} + t.outputs; ++output) {
    layout.unpack(weight, args.arg<const std::byte>(1), {output, output + 1}, weight_row);
    for (size_t row = t.row; row < size_t{t.row} + t.rows; ++row) {
      args.arg<float>(2)[row * c.outputs + output] =
          dot(args.arg<const float>(0) + row * c.columns, weight_row, c.columns);
    }
  }
}

}  // namespace

std::span<const backend::Kernel> matmul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "matmul_portable",
      .op = &matmul_schema,
      .numerics = "exact, f32, 16 lanes, ascending",
      .accepts = accepts,
      .launch = launch,
      .entry = &kMatmulEntry<region>,
      .regions = true,
      .unit_granule = kMatmulOutputs,
  }};
  return kKernels;
}

}  // namespace refrain::ops

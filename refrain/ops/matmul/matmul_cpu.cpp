// matmul: portable kernels, one for each type of weight.
#include "refrain/core/half.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/matmul_portable.h"

namespace refrain::ops {
namespace {

float widened(float value) { return value; }
float widened(bf16 value) { return value.to_float(); }
float widened(f16 value) { return value.to_float(); }

template <class T>
struct Rows {
  const T* data;
  size_t columns;

  void widen(size_t output, float* to) const {
    for (size_t k = 0; k < columns; ++k) to[k] = widened(data[output * columns + k]);
  }
};

template <class T>
bool accepts(const backend::OpCall& call) {
  return call.args[1].layout == &rows() && call.args[1].weight->dtype == DTypeOf<T>::value;
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<MatmulConstants>();
  return matmul_launch(c.rows, c.outputs, c.columns, c.columns * sizeof(float));
}

template <class T>
void region(const backend::TileArgs& args, const MatmulTile& tile) {
  const Rows<T> weights{args.arg<const T>(1), args.constants_as<MatmulConstants>().columns};
  portable::matmul_region<MatmulConstants>(args, weights, tile);
}

template <class T>
constexpr backend::Kernel kernel(std::string_view name) {
  return {.name = name,
          .op = &matmul_schema,
          .numerics = "exact, f32, 16 lanes, ascending",
          .accepts = accepts<T>,
          .launch = launch,
          .entry = &kMatmulEntry<MatmulConstants, region<T>>,
          .regions = true,
          .unit_granule = kMatmulOutputs};
}

}  // namespace

std::span<const backend::Kernel> matmul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {
      kernel<bf16>("matmul_bf16_portable"),
      kernel<f16>("matmul_f16_portable"),
      kernel<float>("matmul_f32_portable"),
  };
  return kKernels;
}

}  // namespace refrain::ops

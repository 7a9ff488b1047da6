// matmul: kernels for AVX2, one for each type of weight.
#include "refrain/backend/features.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/matmul_avx2.h"

namespace refrain::ops {
namespace {

template <class T>
struct Rows {
  const T* data;
  size_t columns;

  template <uint32_t RowCount, uint32_t Outputs>
  REFRAIN_AVX2 void block(const float* x, size_t output, size_t next, float* y, size_t y_stride) const {
    avx2::dot_block<RowCount, Outputs, true>(x, columns, data + output * columns, columns, columns, y,
                                             y_stride, data + next * columns);
  }

  REFRAIN_AVX2 void widen(size_t output, float* to) const {
    const T* from = data + output * columns;
    size_t k = 0;
    for (; k + avx2::kLanes <= columns; k += avx2::kLanes) _mm256_storeu_ps(to + k, avx2::load8(from + k));
    avx2::store_first(to + k, avx2::load_first(from + k, columns - k), columns - k);
  }
};

template <class T>
bool accepts(const backend::OpCall& call) {
  return call.args[1].layout == &rows() && call.args[1].weight->dtype == DTypeOf<T>::value;
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<MatmulConstants>();
  return matmul_launch(c.rows, c.outputs, c.columns, avx2::panel_bytes(c.columns));
}

template <class T>
void region(const backend::TileArgs& args, const MatmulTile& tile) {
  const Rows<T> weights{args.arg<const T>(1), args.constants_as<MatmulConstants>().columns};
  avx2::matmul_region<MatmulConstants>(args, weights, tile);
}

template <class T>
constexpr backend::Kernel kernel(std::string_view name) {
  return {.name = name,
          .op = &matmul_schema,
          .numerics = "exact, f32, avx2 fma, 8 lanes, ascending",
          .needs = backend::kFeatureAvx2,
          .accepts = accepts<T>,
          .launch = launch,
          .entry = &kMatmulEntry<MatmulConstants, region<T>>,
          .regions = true,
          .unit_granule = kMatmulOutputs};
}

}  // namespace

std::span<const backend::Kernel> matmul_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {
      kernel<bf16>("matmul_bf16_avx2"),
      kernel<f16>("matmul_f16_avx2"),
      kernel<float>("matmul_f32_avx2"),
  };
  return kKernels;
}

}  // namespace refrain::ops

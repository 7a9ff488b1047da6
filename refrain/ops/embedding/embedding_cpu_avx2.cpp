// embedding: kernels for AVX2, one for each type of plain weight, and one for MLX affine ones. The bits of
// the portable ones.
#include "refrain/backend/features.h"
#include "refrain/ops/affine_avx2.h"
#include "refrain/ops/embedding/embedding_row.h"

namespace refrain::ops {
namespace {

template <class T>
struct Plain {
  static bool accepts(const backend::OpCall& call) {
    return call.args[0].layout == &rows() && call.args[0].weight->dtype == DTypeOf<T>::value;
  }

  REFRAIN_AVX2 static void row(const backend::TileArgs& args, size_t token, float* output) {
    const size_t columns = args.constants_as<EmbeddingConstants>().columns;
    const T* from = args.arg<const T>(0) + token * columns;
    size_t k = 0;
    for (; k + avx2::kLanes <= columns; k += avx2::kLanes)
      _mm256_storeu_ps(output + k, avx2::load8(from + k));
    avx2::store_first(output + k, avx2::load_first(from + k, columns - k), columns - k);
  }
};

struct Affine {
  static bool accepts(const backend::OpCall& call) { return call.args[0].layout == &mlx_affine_rows(); }

  template <uint32_t Bits>
  static void row_of(const backend::TileArgs& args, size_t token, float* output) {
    const auto* weight = args.arg<const std::byte>(0);
    const AffineWeight affine = args.constants_as<EmbeddingConstants>().affine();
    switch (static_cast<DType>(affine.dtype)) {
      case DType::bf16:
        return avx2::AffineRows<Bits, bf16>(weight, affine).widen_rounded(token, output);
      case DType::f16:
        return avx2::AffineRows<Bits, f16>(weight, affine).widen_rounded(token, output);
      default:
        return avx2::AffineRows<Bits, float>(weight, affine).widen_rounded(token, output);
    }
  }

  static void row(const backend::TileArgs& args, size_t token, float* output) {
    if (args.constants_as<EmbeddingConstants>().bits == 4) {
      row_of<4>(args, token, output);
    } else {
      row_of<8>(args, token, output);
    }
  }
};

template <class Fetch>
constexpr backend::TileKernel kEntry{nullptr, nullptr, embedding_tiles<Fetch>};

template <class Fetch>
constexpr backend::Kernel kernel(std::string_view name, std::string_view numerics) {
  return {.name = name,
          .op = &embedding_schema,
          .numerics = numerics,
          .needs = backend::kFeatureAvx2,
          .accepts = Fetch::accepts,
          .launch = embedding_launch,
          .entry = &kEntry<Fetch>};
}

}  // namespace

std::span<const backend::Kernel> embedding_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {
      kernel<Plain<bf16>>("embedding_bf16_avx2", "exact, f32, copied"),
      kernel<Plain<f16>>("embedding_f16_avx2", "exact, f32, copied"),
      kernel<Plain<float>>("embedding_f32_avx2", "exact, f32, copied"),
      kernel<Affine>("embedding_affine_avx2", "exact, f32, product and sum rounded"),
  };
  return kKernels;
}

}  // namespace refrain::ops

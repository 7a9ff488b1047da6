// embedding: portable kernels, one for plain weights and one for MLX affine ones.
#include "refrain/ops/embedding/embedding_row.h"

namespace refrain::ops {
namespace {

struct Plain {
  static bool accepts(const backend::OpCall& call) { return call.args[0].layout == &rows(); }

  static void row(const backend::TileArgs& args, size_t token, float* output) {
    const auto& c = args.constants_as<EmbeddingConstants>();
    const auto* weight = args.arg<const std::byte>(0);
    for (size_t k = 0; k < c.columns; ++k) output[k] = float_at(weight, c.dtype, token * c.columns + k);
  }
};

struct Affine {
  static bool accepts(const backend::OpCall& call) { return call.args[0].layout == &mlx_affine_rows(); }

  static void row(const backend::TileArgs& args, size_t token, float* output) {
    const auto& c = args.constants_as<EmbeddingConstants>();
    widen_affine_row(args.arg<const std::byte>(0), c.affine(), token, output);
  }
};

template <class Fetch>
constexpr backend::TileKernel kEntry{nullptr, nullptr, embedding_tiles<Fetch>};

template <class Fetch>
constexpr backend::Kernel kernel(std::string_view name, std::string_view numerics) {
  return {.name = name,
          .op = &embedding_schema,
          .numerics = numerics,
          .accepts = Fetch::accepts,
          .launch = embedding_launch,
          .entry = &kEntry<Fetch>};
}

}  // namespace

std::span<const backend::Kernel> embedding_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {
      kernel<Plain>("embedding_plain_portable", "exact, f32, copied"),
      kernel<Affine>("embedding_affine_portable", "exact, f32, product and sum rounded"),
  };
  return kKernels;
}

}  // namespace refrain::ops

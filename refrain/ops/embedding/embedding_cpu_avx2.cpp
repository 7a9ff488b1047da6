// embedding: the kernel for AVX2. The bits of the portable one.
#include "refrain/backend/features.h"
#include "refrain/ops/decode_avx2.h"
#include "refrain/ops/embedding/embedding_row.h"

namespace refrain::ops {
namespace {

struct Widen {
  template <class Decoder>
  REFRAIN_AVX2 static void run(const Decoder& weights, size_t index, size_t columns, float* to) {
    avx2::widen(weights, index, columns, to);
  }
};

struct Fetch {
  static void row(const backend::TileArgs& args, size_t token, float* output) {
    const auto& c = args.constants_as<EmbeddingConstants>();
    avx2::with_decoder<Widen, false>(args.arg<const std::byte>(0), *c.format, c.columns, token, c.columns,
                                     output);
  }
};

constexpr backend::TileKernel kEntry{nullptr, nullptr, embedding_tiles<Fetch>};

}  // namespace

std::span<const backend::Kernel> embedding_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "embedding_avx2",
      .op = &embedding_schema,
      .numerics = "exact, f32, as decoded",
      .needs = backend::kFeatureAvx2,
      .accepts = embedding_accepts,
      .launch = embedding_launch,
      .entry = &kEntry,
  }};
  return kKernels;
}

}  // namespace refrain::ops

// embedding: the portable kernel.
#include "refrain/ops/embedding/embedding_row.h"

namespace refrain::ops {
namespace {

struct Fetch {
  static void row(const backend::TileArgs& args, size_t token, float* output) {
    const auto& c = args.constants_as<EmbeddingConstants>();
    matrix_layout(*c.format).unpack(c.weight(), args.arg<const std::byte>(0), {token, token + 1}, output);
  }
};

constexpr backend::TileKernel kEntry{nullptr, nullptr, embedding_tiles<Fetch>};

}  // namespace

std::span<const backend::Kernel> embedding_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "embedding_portable",
      .op = &embedding_schema,
      .numerics = "exact, f32, as decoded",
      .accepts = embedding_accepts,
      .launch = embedding_launch,
      .entry = &kEntry,
  }};
  return kKernels;
}

}  // namespace refrain::ops

// matmul: the kernel for AVX2, with f32 FMA. Few rows read the packed weights directly, many rows share a panel of weights
// widened to f32.
//
// Both ways sum element k in lane k % 8 of one vector, k ascending, each step one FMA with the same f32
// weight, so a row's bits do not depend on which way it went.
#include "refrain/backend/features.h"
#include "refrain/ops/decode_avx2.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/matmul/matmul_tiles.h"

namespace refrain::ops {
namespace avx2 {
namespace {

/// Outputs of a panel and of a block of registers: 4 rows x 3 outputs are 12 of the 16 registers.
inline constexpr uint32_t kPanelOutputs = 3;
/// Rows of a block of registers.
inline constexpr uint32_t kBlockRows = 4;

/// Scratch of a worker: one panel.
constexpr size_t panel_bytes(size_t columns) {
  return kPanelOutputs * align_up(columns, kLanes) * sizeof(float);
}

/// One step of eight elements.
template <uint32_t Rows, uint32_t Outputs, class Decoder>
REFRAIN_AVX2_INLINE void add_eight(const Decoder& weights, const typename Decoder::Row (&rows)[Outputs],
                                   const typename Decoder::Group (&groups)[Outputs], const float* x,
                                   size_t x_stride, size_t k, __m256 (&sums)[Rows][Outputs]) {
  __m256 eight[Outputs];
  for (uint32_t o = 0; o < Outputs; ++o) eight[o] = weights.eight(rows[o], groups[o], k);
  for (uint32_t r = 0; r < Rows; ++r) {
    const __m256 value = load8(x + r * x_stride + k);
    for (uint32_t o = 0; o < Outputs; ++o) sums[r][o] = _mm256_fmadd_ps(value, eight[o], sums[r][o]);
  }
}

/// The microkernel: y[r * y_stride + o] = sum over k of x[r * x_stride + k] * weight[output + o][k]. Ask: meanwhile brings
/// in the rows from `next` on.
template <uint32_t Rows, uint32_t Outputs, bool Ask, class Decoder>
REFRAIN_AVX2_INLINE void dot_block(const Decoder& weights, const float* x, size_t x_stride, size_t columns,
                                   size_t output, size_t next, float* y, size_t y_stride) {
  __m256 sums[Rows][Outputs];
  typename Decoder::Row rows[Outputs], ahead[Outputs];
  typename Decoder::Group groups[Outputs];
  for (uint32_t o = 0; o < Outputs; ++o) {
    rows[o] = weights.row(output + o);
    ahead[o] = weights.row(next + o);
    for (uint32_t r = 0; r < Rows; ++r) sums[r][o] = _mm256_setzero_ps();
  }
  const size_t step = weights.step();
  size_t k = 0;
  for (size_t group = 0; k + step <= columns; ++group) {
    for (uint32_t o = 0; o < Outputs; ++o) groups[o] = weights.group(rows[o], group);
    if constexpr (Ask) {
      for (uint32_t o = 0; o < Outputs; ++o) weights.ask(ahead[o], k);
    }
    for (const size_t end = k + step; k < end; k += kLanes)
      add_eight(weights, rows, groups, x, x_stride, k, sums);
  }
  if constexpr (Decoder::kRagged) {
    for (; k + kLanes <= columns; k += kLanes) add_eight(weights, rows, groups, x, x_stride, k, sums);
    for (uint32_t r = 0; k < columns && r < Rows; ++r) {
      const __m256 value = load_first(x + r * x_stride + k, columns - k);
      for (uint32_t o = 0; o < Outputs; ++o)
        sums[r][o] = _mm256_fmadd_ps(value, weights.rest(rows[o], k, columns - k), sums[r][o]);
    }
  }
  for (uint32_t r = 0; r < Rows; ++r) {
    for (uint32_t o = 0; o < Outputs; ++o) y[r * y_stride + o] = horizontal_sum(sums[r][o]);
  }
}

/// A part of the product: `rows` rows of x with `outputs` rows of the weight, from `output` on.
struct Product {
  const float* x;
  size_t columns;
  float* y;  ///< where the first row's output `output` goes
  size_t y_stride;
  uint32_t output;
  uint32_t outputs;
  uint32_t weight_outputs;  ///< of the whole weight
};

/// One block of registers with packed weights.
template <uint32_t Rows, uint32_t Outputs, class Decoder>
REFRAIN_AVX2_INLINE void direct_block(const Decoder& weights, const Product& p, uint32_t o) {
  const size_t output = size_t{p.output} + o;
  // The rows behind these, if so many are left: they are next, or another tile's.
  const size_t next = output + 2 * Outputs <= p.weight_outputs ? output + Outputs : output;
  dot_block<Rows, Outputs, true>(weights, p.x, p.columns, p.columns, output, next, p.y + o, p.y_stride);
}

/// Rows (1..4) with packed weights.
template <uint32_t Rows, uint32_t Outputs, class Decoder>
REFRAIN_AVX2 void direct_rows(const Decoder& weights, const Product& p) {
  uint32_t o = 0;
  for (; o + Outputs <= p.outputs; o += Outputs) direct_block<Rows, Outputs>(weights, p, o);
  for (; o < p.outputs; ++o) direct_block<Rows, 1>(weights, p, o);
}

/// Any number of rows with a panel of `Outputs` f32 weight rows.
template <uint32_t Outputs, class Decoder>
REFRAIN_AVX2 void panel_rows(const Decoder& weights, const Product& p, uint32_t o, float* panel,
                             uint32_t rows) {
  const size_t stride = align_up(p.columns, kLanes);
  for (uint32_t i = 0; i < Outputs; ++i) widen(weights, p.output + o + i, p.columns, panel + i * stride);
  const PlainDecoder<float> widened(panel, stride);
  const float* x = p.x;
  float* y = p.y + o;
  uint32_t row = 0;
  for (; row + kBlockRows <= rows;
       row += kBlockRows, x += kBlockRows * p.columns, y += kBlockRows * p.y_stride)
    dot_block<kBlockRows, Outputs, false>(widened, x, p.columns, p.columns, 0, 0, y, p.y_stride);
  for (; row < rows; ++row, x += p.columns, y += p.y_stride)
    dot_block<1, Outputs, false>(widened, x, p.columns, p.columns, 0, 0, y, p.y_stride);
}

struct Region {
  template <class Decoder>
  REFRAIN_AVX2 static void run(const Decoder& weights, const backend::TileArgs& args, const MatmulTile& t) {
    const auto& c = args.constants_as<MatmulConstants>();
    const float* x = args.arg<const float>(0) + size_t{t.row} * c.columns;
    float* y = args.arg<float>(2) + size_t{t.row} * c.outputs + t.output;
    const Product product{x, c.columns, y, c.outputs, t.output, t.outputs, c.outputs};
    switch (t.rows) {  // of few rows, widening would not pay for its stores
      case 1:
        return direct_rows<1, 4>(weights, product);
      case 2:
        return direct_rows<2, 4>(weights, product);
      case 3:
        return direct_rows<3, 3>(weights, product);
      case 4:
        return direct_rows<4, 3>(weights, product);
      default:
        break;
    }
    auto* panel = reinterpret_cast<float*>(args.scratch);
    uint32_t o = 0;
    // A panel of one reads all of x for a third of the work, so the last four are two and two.
    for (; t.outputs - o > 4 || t.outputs - o == kPanelOutputs; o += kPanelOutputs)
      panel_rows<kPanelOutputs>(weights, product, o, panel, t.rows);
    for (; t.outputs - o >= 2; o += 2) panel_rows<2>(weights, product, o, panel, t.rows);
    if (t.outputs - o == 1) panel_rows<1>(weights, product, o, panel, t.rows);
  }
};

}  // namespace
}  // namespace avx2

namespace {

bool accepts(const backend::OpCall& call) { return is_matrix(call.args[1]); }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<MatmulConstants>();
  return matmul_launch(c, avx2::panel_bytes(c.columns));
}

void region(const backend::TileArgs& args, const MatmulTile& tile) {
  const auto& c = args.constants_as<MatmulConstants>();
  avx2::with_decoder<avx2::Region, true>(args.arg<const std::byte>(1), *c.format, c.columns, args, tile);
}

}  // namespace

std::span<const backend::Kernel> matmul_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "matmul_avx2",
      .op = &matmul_schema,
      .numerics = "exact, f32, avx2 fma, 8 lanes, ascending",
      .needs = backend::kFeatureAvx2,
      .accepts = accepts,
      .launch = launch,
      .entry = &kMatmulEntry<region>,
      .regions = true,
      .unit_granule = kMatmulOutputs,
  }};
  return kKernels;
}

}  // namespace refrain::ops

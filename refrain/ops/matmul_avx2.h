// The AVX2 frame of matmul and quantized_matmul: few rows read the packed weights directly, many rows share a
// panel of weights widened to f32.
//
// Both ways sum element k in lane k % 8 of one vector, k ascending, each step one FMA with the same f32
// weight, so a row's bits do not depend on which way it went.
#pragma once

#include "refrain/ops/matmul_tiles.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops::avx2 {

/// Up to so many rows read packed weights directly: below it, widening would not pay for its stores.
inline constexpr uint32_t kDirectRows = 4;
/// Outputs of a panel and of a block of registers: 4 rows x 3 outputs are 12 of the 16 registers.
inline constexpr uint32_t kPanelOutputs = 3;
/// Rows of a block of registers.
inline constexpr uint32_t kBlockRows = 4;

/// Scratch of a worker: one panel.
constexpr size_t panel_bytes(size_t columns) {
  return kPanelOutputs * align_up(columns, kLanes) * sizeof(float);
}

/// One step of eight elements.
template <uint32_t Rows, uint32_t Outputs, class T>
REFRAIN_AVX2_INLINE void add_products(const float* x, size_t x_stride, const T* w, size_t w_stride,
                                      __m256 (&sums)[Rows][Outputs]) {
  __m256 weights[Outputs];
  for (uint32_t o = 0; o < Outputs; ++o) weights[o] = load8(w + o * w_stride);
  for (uint32_t r = 0; r < Rows; ++r) {
    const __m256 value = load8(x + r * x_stride);
    for (uint32_t o = 0; o < Outputs; ++o) sums[r][o] = _mm256_fmadd_ps(value, weights[o], sums[r][o]);
  }
}

/// y[r * y_stride + o] = sum over k of x[r * x_stride + k] * w[o * w_stride + k]. Prefetch: meanwhile brings
/// in the rows of `next`.
template <uint32_t Rows, uint32_t Outputs, bool Prefetch, class T>
REFRAIN_AVX2_INLINE void dot_block(const float* x, size_t x_stride, const T* w, size_t w_stride,
                                   size_t columns, float* y, size_t y_stride, const T* next = nullptr) {
  __m256 sums[Rows][Outputs];
  for (uint32_t r = 0; r < Rows; ++r) {
    for (uint32_t o = 0; o < Outputs; ++o) sums[r][o] = _mm256_setzero_ps();
  }
  size_t k = 0;
  if constexpr (Prefetch) {
    constexpr size_t kLine = 64 / sizeof(T);
    for (; k + kLine <= columns; k += kLine) {
      for (uint32_t o = 0; o < Outputs; ++o) prefetch(next + o * w_stride + k);
      for (size_t i = k; i < k + kLine; i += kLanes) {
        add_products<Rows, Outputs>(x + i, x_stride, w + i, w_stride, sums);
      }
    }
  }
  for (; k + kLanes <= columns; k += kLanes) {
    add_products<Rows, Outputs>(x + k, x_stride, w + k, w_stride, sums);
  }
  if (k < columns) {
    for (uint32_t r = 0; r < Rows; ++r) {
      const __m256 value = load_first(x + r * x_stride + k, columns - k);
      for (uint32_t o = 0; o < Outputs; ++o) {
        sums[r][o] = _mm256_fmadd_ps(value, load_first(w + o * w_stride + k, columns - k), sums[r][o]);
      }
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
template <uint32_t Rows, uint32_t Outputs, class Weights>
REFRAIN_AVX2_INLINE void direct_block(const Weights& weights, const Product& p, uint32_t o) {
  const size_t output = size_t{p.output} + o;
  // The rows behind these, if so many are left: they are next, or another tile's.
  const size_t next = output + 2 * Outputs <= p.weight_outputs ? output + Outputs : output;
  weights.template block<Rows, Outputs>(p.x, output, next, p.y + o, p.y_stride);
}

/// Rows (1..4) with packed weights: `weights.block<Rows, Outputs>(x, output, next, y, y_stride)`.
template <uint32_t Rows, uint32_t Outputs, class Weights>
REFRAIN_AVX2 void direct_rows(const Weights& weights, const Product& p) {
  uint32_t o = 0;
  for (; o + Outputs <= p.outputs; o += Outputs) direct_block<Rows, Outputs>(weights, p, o);
  for (; o < p.outputs; ++o) direct_block<Rows, 1>(weights, p, o);
}

/// Any number of rows with a panel of `Outputs` f32 weight rows.
template <uint32_t Outputs>
REFRAIN_AVX2 void panel_rows(const float* panel, size_t panel_stride, uint32_t rows, const float* x,
                             size_t columns, float* y, size_t y_stride) {
  uint32_t row = 0;
  for (; row + kBlockRows <= rows; row += kBlockRows) {
    dot_block<kBlockRows, Outputs, false>(x + row * columns, columns, panel, panel_stride, columns,
                                          y + row * y_stride, y_stride);
  }
  for (; row < rows; ++row) {
    dot_block<1, Outputs, false>(x + row * columns, columns, panel, panel_stride, columns, y + row * y_stride,
                                 y_stride);
  }
}

template <uint32_t Outputs, class Weights>
REFRAIN_AVX2 void widened_rows(const Weights& weights, uint32_t output, float* panel, uint32_t rows,
                               const float* x, size_t columns, float* y, size_t y_stride) {
  const size_t stride = align_up(columns, kLanes);
  for (uint32_t o = 0; o < Outputs; ++o) weights.widen(output + o, panel + o * stride);
  panel_rows<Outputs>(panel, stride, rows, x, columns, y, y_stride);
}

/// `Constants` has rows, outputs, columns. `weights` gives block<Rows, Outputs> and widen(output, to).
template <class Constants, class Weights>
REFRAIN_AVX2 void matmul_region(const backend::TileArgs& args, const Weights& weights, const MatmulTile& t) {
  const auto& c = args.constants_as<Constants>();
  auto* panel = reinterpret_cast<float*>(args.scratch);
  const float* x = args.template arg<const float>(0) + size_t{t.row} * c.columns;
  float* y = args.template arg<float>(2) + size_t{t.row} * c.outputs + t.output;
  const Product product{x, c.columns, y, c.outputs, t.output, t.outputs, c.outputs};
  switch (t.rows) {
    case 1:
      direct_rows<1, 4>(weights, product);
      break;
    case 2:
      direct_rows<2, 4>(weights, product);
      break;
    case 3:
      direct_rows<3, 3>(weights, product);
      break;
    case 4:
      direct_rows<4, 3>(weights, product);
      break;
    default: {
      const auto left = [&](uint32_t o) { return t.outputs - o; };
      uint32_t o = 0;
      // A panel of one reads all of x for a third of the work, so the last four are two and two.
      for (; left(o) > 4 || left(o) == kPanelOutputs; o += kPanelOutputs) {
        widened_rows<kPanelOutputs>(weights, t.output + o, panel, t.rows, x, c.columns, y + o, c.outputs);
      }
      for (; left(o) >= 2; o += 2) {
        widened_rows<2>(weights, t.output + o, panel, t.rows, x, c.columns, y + o, c.outputs);
      }
      if (left(o) == 1) {
        widened_rows<1>(weights, t.output + o, panel, t.rows, x, c.columns, y + o, c.outputs);
      }
    }
  }
}

}  // namespace refrain::ops::avx2

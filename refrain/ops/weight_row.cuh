// Elements of weight matrices in the layouts `rows` and `grouped`, for CUDA kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/backend/op.h"
#include "refrain/core/half.h"
#include "refrain/core/host_device.h"
#include "refrain/core/weight_format.h"
#include "refrain/ops/layouts.h"

namespace refrain::ops {

/// How the rows of a matrix lie; made on the host from its format, and copied to the kernel.
struct MatrixRows {
  uint32_t columns = 0;
  uint32_t bits = 0;  ///< of a code; 0: elements are plain
  uint32_t block_elements = 1;
  DType dtype = DType::f32;  ///< of elements, or of scales and biases
  bool has_biases = false;
  size_t row_bytes = 0;
  size_t scales_offset_bytes = 0;
  size_t biases_offset_bytes = 0;
};

inline MatrixRows matrix_rows(const WeightFormat& format, uint32_t columns) {
  MatrixRows rows;
  rows.columns = columns;
  rows.bits = format.bits;
  rows.block_elements = format.block_elements;
  rows.dtype = format.dtype;
  rows.has_biases = format.has_biases;
  rows.row_bytes = columns * size_bytes(format.dtype);
  if (format.bits != 0) {
    const CodedRow row(format, columns);
    rows.row_bytes = row.bytes;
    rows.scales_offset_bytes = row.scales_offset_bytes;
    rows.biases_offset_bytes = row.biases_offset_bytes;
  }
  return rows;
}

/// True for a weight that matrix_rows() describes. By the layout's name: its address is the library's.
inline bool has_matrix_rows(const backend::ArgumentInfo& weight) {
  return weight.layout != nullptr && (weight.layout->name == "rows" || weight.layout->name == "grouped");
}

/// Element `index` of floats of a dtype, at any address that is a multiple of two.
__device__ inline float float_at(const std::byte* from, DType dtype, size_t index) {
  const auto* halves = reinterpret_cast<const uint16_t*>(from);
  if (dtype == DType::f32) {
    const uint32_t low = halves[2 * index], high = halves[2 * index + 1];
    return __uint_as_float(high << 16 | low);
  }
  return dtype == DType::f16 ? f16{halves[index]}.to_float() : bf16{halves[index]}.to_float();
}

/// Element `column` of the row that begins at `row`, each operation rounded to f32.
__device__ inline float element_at(const MatrixRows& m, const std::byte* row, uint32_t column) {
  if (m.bits == 0) return float_at(row, m.dtype, column);
  const size_t bit = size_t{column} * m.bits;  // codes may lie across two bytes; the one behind may be read
  const auto* bytes = reinterpret_cast<const uint8_t*>(row) + bit / 8;
  uint32_t code = (bytes[0] | uint32_t{bytes[1]} << 8) >> bit % 8 & ((1u << m.bits) - 1);
  const uint32_t group = column / m.block_elements;
  const float scale = float_at(row + m.scales_offset_bytes, m.dtype, group);
  if (m.has_biases)
    return scale * static_cast<float>(code) + float_at(row + m.biases_offset_bytes, m.dtype, group);
  const uint32_t sign = 1u << (m.bits - 1);
  return scale * static_cast<float>(static_cast<int32_t>((code ^ sign) - sign));
}

}  // namespace refrain::ops

// How weights lie in memory for the CPU kernels, and what kernels must know of it.
#pragma once

#include <cstddef>
#include <span>

#include "refrain/backend/op.h"
#include "refrain/core/checked.h"

namespace refrain::ops {

/// All of them, best first. The span and what it points to live as long as the program.
std::span<const backend::WeightLayout> cpu_layouts();

/// `vector_f32`: a plain vector of f32, f16 or bf16, widened to f32. Serves Use::vector.
const backend::WeightLayout& vector_f32();
/// `rows`: a plain matrix of f32, f16 or bf16, row-major as in its file. Serves matvec, matmul and gather.
const backend::WeightLayout& rows();
/// `grouped`: a matrix of codes with a scale, and perhaps a bias, a group; each row as CodedRow says. Serves matvec,
/// matmul and gather.
const backend::WeightLayout& grouped();

/// `rows` or `grouped`: the one that takes matrices of the format.
const backend::WeightLayout& matrix_layout(const WeightFormat& format);
/// The same of a weight for products and gathers, for kernels that take either.
inline bool is_matrix(const backend::ArgumentInfo& argument) {
  return argument.layout == &rows() || argument.layout == &grouped();
}

/// Writes the packed form of all rows to `packed`: layout.packed_bytes(weight) of memory of the host.
void pack_whole(const backend::WeightLayout& layout, const TensorSource& source,
                const backend::WeightInfo& weight, std::span<std::byte> packed);

/// Where the parts of a row of a `grouped` weight begin: codes, least significant bits first; the scales; the biases.
/// Rows begin at multiples of 16 bytes, and behind the codes are at least 3 bytes that may be read.
struct CodedRow {
  size_t groups = 0;
  size_t scales_offset_bytes = 0;
  size_t biases_offset_bytes = 0;
  size_t used_bytes = 0;
  size_t bytes = 0;  ///< to the next row

  CodedRow(const WeightFormat& format, size_t columns)
      : groups(columns / format.block_elements), scales_offset_bytes(columns * format.bits / 8) {
    const size_t scales_bytes = groups * size_bytes(format.dtype);
    biases_offset_bytes = scales_offset_bytes + scales_bytes;
    used_bytes = biases_offset_bytes + (format.has_biases ? scales_bytes : 0);
    bytes = align_up(used_bytes, 16);
  }
};

}  // namespace refrain::ops

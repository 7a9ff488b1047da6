// How weights lie in memory for the CPU kernels: three layouts, and what kernels must know of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "refrain/backend/op.h"
#include "refrain/core/checked.h"
#include "refrain/core/dtype.h"

namespace refrain::ops {

/// All of them, best first. The span and what it points to live as long as the program.
std::span<const backend::WeightLayout> cpu_layouts();

/// `vector_f32`: a plain vector of f32, f16 or bf16, widened to f32. Serves Use::vector.
const backend::WeightLayout& vector_f32();
/// `rows`: a plain matrix of f32, f16 or bf16, row-major as in its file. Serves matvec, matmul and gather.
const backend::WeightLayout& rows();
/// `mlx_affine_rows`: an MLX affine matrix of 4 or 8 bits in groups of 32, 64 or 128: the three parts as in
/// the file, one after another, each beginning at a multiple of 64 bytes. Serves matvec, matmul and gather.
const backend::WeightLayout& mlx_affine_rows();

/// Writes the packed form of all rows to `packed`: layout.packed_bytes(weight) of memory of the host.
void pack_whole(const backend::WeightLayout& layout, const TensorSource& source,
                const backend::WeightInfo& weight, std::span<std::byte> packed);

/// Where the parts of an `mlx_affine_rows` weight [rows, columns] begin.
struct AffinePlanes {
  size_t codes_row_bytes = 0;  ///< of one row
  size_t groups = 0;           ///< of one row
  size_t scales_offset_bytes = 0;
  size_t biases_offset_bytes = 0;
  size_t bytes = 0;

  constexpr AffinePlanes(size_t rows, size_t columns, uint32_t bits, uint32_t group_size, DType scale_dtype)
      : codes_row_bytes(columns * bits / 8), groups(columns / group_size) {
    const size_t plane_bytes = align_up(rows * groups * size_bytes(scale_dtype), kAlignment);
    scales_offset_bytes = align_up(rows * codes_row_bytes, kAlignment);
    biases_offset_bytes = scales_offset_bytes + plane_bytes;
    bytes = biases_offset_bytes + plane_bytes;
  }

  static constexpr size_t kAlignment = 64;
};

}  // namespace refrain::ops

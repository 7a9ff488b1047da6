// How the elements of a weight are encoded. The type alone: formats are values in format/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "refrain/core/dtype.h"

namespace refrain {

/// A format of blocks: as many consecutive elements of a row as share a scale, or one plain element. Two weights are of
/// one format when they point to the same value, which lives as long as the program.
struct WeightFormat {
  /// What one block occupies of a part in which a matrix is stored; each part is row-major.
  struct Part {
    DType dtype = DType::u8;
    uint32_t elements = 0;  ///< of dtype; 0: there is no such part

    constexpr size_t block_bytes() const { return elements * size_bytes(dtype); }
  };
  static constexpr size_t kMaxParts = 3;

  std::string_view name;        ///< "bf16", "mlx_affine4_g64_bf16", "q8_0"
  DType dtype = DType::f32;     ///< of a plain element; else of scales and biases
  uint32_t block_elements = 1;  ///< a row is a whole number of blocks
  std::array<Part, kMaxParts> parts{};

  /// Bits of a code; 0: elements are plain. A coded element is scale * code + bias, or, without biases, scale * code
  /// with the code in two's complement; each operation is rounded to f32.
  uint32_t bits = 0;
  bool has_biases = false;

  /// The values of `blocks` consecutive blocks, at any address, one pointer a part. What every reference and test goes
  /// by. Null for plain elements that are no floats.
  void (*decode)(const WeightFormat& format, const std::byte* const* parts, size_t blocks,
                 float* values) = nullptr;
  /// The blocks that stand for `blocks * block_elements` values; false when one is not finite, its block being that of
  /// zeros. Null: cannot be made.
  bool (*encode)(const WeightFormat& format, const float* values, size_t blocks,
                 std::byte* const* parts) = nullptr;
  /// One block's codes, least significant bits first, and its scale. Null: the parts are codes so, scales and biases.
  void (*separate)(const std::byte* block, std::byte* codes, std::byte* scale) = nullptr;

  constexpr size_t part_count() const {
    size_t count = 0;
    while (count < kMaxParts && parts[count].elements != 0) ++count;
    return count;
  }
};

}  // namespace refrain

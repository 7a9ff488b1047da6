// Whole tensors in a format: made from values, and back. Plain loops, for tools, tests and examples.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "refrain/core/tensor_source.h"

namespace refrain::format {

/// A tensor in a format, in memory of its own.
struct EncodedTensor {
  const WeightFormat* format = nullptr;
  Shape shape;
  std::vector<std::vector<std::byte>> parts;

  /// The tensor as a reader of a file would hand it over; it refers to these parts.
  TensorSource source(std::string name) const;
};

/// Dtype and shape of part `index` of a tensor of `shape`, whose rows are whole blocks.
TensorSegment part_of(const WeightFormat& format, const Shape& shape, size_t index);

/// Throws InvalidArgument unless the segments of `source` are the parts of its format, with as many bytes as its shape
/// asks for and rows of whole blocks. Their dtypes and shapes do not matter.
void check_parts(const TensorSource& source);

/// Throws InvalidArgument when the format cannot be made, `values` are not as many as the shape has, a row is not a whole
/// number of blocks, or a value is not finite.
EncodedTensor encode(const WeightFormat& format, const Shape& shape, std::span<const float> values);

/// The values, row-major. Throws as check_parts(), and for a format without decode().
std::vector<float> decode(const TensorSource& source);

/// Whether two tensors have the same shape and, to the bit of f32, the same values, however each is stored. Throws as
/// check_parts(). Formats without decode() have to be the same one, and the bytes too.
bool same_values(const TensorSource& a, const TensorSource& b);

}  // namespace refrain::format

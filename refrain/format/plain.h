// Plain elements as a weight format: one part of elements, row-major.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "refrain/core/tensor_source.h"

namespace refrain::format {

/// Elements of `dtype`; those of f32, f16 and bf16 can be decoded. Named like the dtype.
const WeightFormat& plain(DType dtype);

/// A tensor of plain elements that lie in memory of the caller.
TensorSource plain_tensor(std::string name, DType dtype, const Shape& shape,
                          std::span<const std::byte> bytes);

}  // namespace refrain::format

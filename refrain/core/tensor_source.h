// A tensor as it lies in a file: what a reader of a format fills in and a device packs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "refrain/core/dtype.h"
#include "refrain/core/mapped_file.h"
#include "refrain/core/shape.h"
#include "refrain/core/weight_format.h"

namespace refrain {

/// Tensors that begin at a multiple of this can be used where a file has them. It is what the safetensors
/// format promises, and enough for every element type; kernels ask for no more.
inline constexpr size_t kInPlaceAlignmentBytes = 8;

/// Bytes of one part of a tensor. They may start at any address.
struct TensorSegment {
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> bytes;
};

struct TensorSource {
  std::string name;  ///< for messages: "model.layers.0.mlp.up_proj.weight"
  const WeightFormat* format = nullptr;
  Shape shape;                             ///< logical, for example [rows, columns]
  std::vector<TensorSegment> segments;     ///< the format's parts
  std::shared_ptr<const MappedFile> file;  ///< keeps the segments alive; null: the caller does
};

}  // namespace refrain

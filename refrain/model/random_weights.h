// Weights of any shape without a file, for benchmarks: what a program costs does not depend on their values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "refrain/model/weights.h"

namespace refrain::model {

/// Matrices in MLX's affine format, 4 bits in groups of 64 with bf16 scales, whose rows have a norm of about one, and
/// vectors of ones in bf16. The same name gives the same values. A tensor lives until the next one is asked for.
class RandomWeights final : public WeightSource {
 public:
  TensorSource weight(const std::string& module, int64_t rows, int64_t columns) const override;
  TensorSource tensor(const std::string& name, const Shape& shape) const override;
  std::vector<std::string> tensor_names() const override { return {}; }
  uint64_t bytes() const override { return 0; }
  std::string origin() const override { return "random weights"; }

 private:
  mutable std::vector<uint64_t> codes_;
  mutable std::vector<uint16_t> scales_, biases_;
};

}  // namespace refrain::model

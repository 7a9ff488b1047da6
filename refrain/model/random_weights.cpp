#include "refrain/model/random_weights.h"

#include <cmath>
#include <functional>
#include <random>

#include "refrain/core/checked.h"
#include "refrain/core/half.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/plain.h"

namespace refrain::model {
namespace {

constexpr int64_t kGroup = 64;

}  // namespace

TensorSource RandomWeights::weight(const std::string& module, int64_t rows, int64_t columns) const {
  if (columns % kGroup != 0)
    throw InvalidArgument("[random weights] " + module + ": expected columns in groups of 64, got " +
                          std::to_string(columns));
  const auto codes_bytes = static_cast<size_t>(rows * columns / 2);
  const auto groups = static_cast<size_t>(rows * columns / kGroup);
  std::mt19937_64 random(std::hash<std::string>()(module));
  codes_.resize(ceil_div(codes_bytes, sizeof(uint64_t)));
  for (uint64_t& word : codes_) word = random();
  // Codes 0 to 15 less 7.5 have a variance of 21.25; scales differ so that none can be left out unseen.
  const double scale = 1 / std::sqrt(21.25 * static_cast<double>(columns));
  scales_.resize(groups);
  biases_.resize(groups);
  for (size_t g = 0; g < groups; ++g) {
    const auto value = static_cast<float>(scale * (0.75 + static_cast<double>(random() % 512) / 1024));
    scales_[g] = bf16::from_float(value).bits;
    biases_[g] = bf16::from_float(-7.5f * value).bits;
  }
  const auto bytes = [](const auto& values, size_t count) {
    return std::as_bytes(std::span(values)).first(count);
  };
  const Shape codes_shape{rows, columns / 8}, groups_shape{rows, columns / kGroup};
  return {module,
          &format::mlx_affine({4, kGroup}, DType::bf16),
          {rows, columns},
          {{DType::u32, codes_shape, bytes(codes_, codes_bytes)},
           {DType::bf16, groups_shape, bytes(scales_, groups * 2)},
           {DType::bf16, groups_shape, bytes(biases_, groups * 2)}},
          nullptr};
}

TensorSource RandomWeights::tensor(const std::string& name, const Shape& shape) const {
  const auto count = static_cast<size_t>(shape.elements());
  scales_.assign(count, bf16::from_float(1.0f).bits);
  return {name,
          &format::plain(DType::bf16),
          shape,
          {{DType::bf16, shape, std::as_bytes(std::span(scales_)).first(count * 2)}},
          nullptr};
}

}  // namespace refrain::model

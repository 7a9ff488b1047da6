#include "refrain/core/shape.h"

#include <algorithm>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain {

Shape::Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) {
  if (dims.size() > kMaxRank) {
    throw InvalidArgument("[shape] rank: expected at most 8, got " + std::to_string(dims.size()));
  }
  for (const int64_t dim : dims) {
    if (dim < 0) throw InvalidArgument("[shape] dimension: expected >= 0, got " + std::to_string(dim));
    dims_[rank_++] = dim;
  }
  if (std::ranges::find(dims, 0) != dims.end()) {
    elements_ = 0;
    return;
  }
  for (const int64_t dim : dims) {
    elements_ = checked_mul(elements_, dim).value_or(kTooMany);
    if (elements_ == kTooMany) return;
  }
}

void Shape::refuse_elements() const {
  throw InvalidArgument("[shape] " + to_string(*this) + ": the number of elements overflows");
}

bool Shape::operator==(const Shape& other) const { return std::ranges::equal(dims(), other.dims()); }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.rank(); ++axis) {
    if (axis != 0) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + "]";
}

}  // namespace refrain

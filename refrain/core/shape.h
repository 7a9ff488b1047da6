// The dimensions of a tensor, outermost first, at most eight.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

namespace refrain {

class Shape {
 public:
  static constexpr size_t kMaxRank = 8;

  Shape() = default;  ///< rank 0: one element
  /// Throws InvalidArgument for more than kMaxRank dimensions or a negative one.
  Shape(std::initializer_list<int64_t> dims);
  explicit Shape(std::span<const int64_t> dims);

  size_t rank() const { return rank_; }
  int64_t operator[](size_t axis) const { return dims_[axis]; }
  int64_t back() const { return dims_[rank_ - 1]; }
  std::span<const int64_t> dims() const { return {dims_.data(), rank_}; }

  /// The product of the dimensions, or nothing when it exceeds int64_t.
  std::optional<int64_t> elements_checked() const {
    return elements_ == kTooMany ? std::nullopt : std::optional(elements_);
  }
  /// The product of the dimensions. Throws InvalidArgument when it exceeds int64_t.
  int64_t elements() const {
    if (elements_ == kTooMany) refuse_elements();
    return elements_;
  }

  bool operator==(const Shape& other) const;

 private:
  static constexpr int64_t kTooMany = -1;

  [[noreturn]] void refuse_elements() const;

  std::array<int64_t, kMaxRank> dims_{};
  int64_t elements_ = 1;
  uint8_t rank_ = 0;
};

/// `[2, 3]`
std::string to_string(const Shape& shape);

}  // namespace refrain

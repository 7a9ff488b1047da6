#include "refrain/format/encoded.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::format {
namespace {

[[noreturn]] void fail(std::string_view name, const std::string& what) {
  throw InvalidArgument(fmt::format("[format] {}: {}", name, what));
}

size_t blocks_of(const WeightFormat& format, const Shape& shape, std::string_view name) {
  const int64_t columns = shape.rank() == 0 ? 1 : shape.back();
  if (columns % format.block_elements != 0) {
    fail(name, fmt::format("{}: expected rows of a multiple of {} elements, got {}", format.name,
                           format.block_elements, columns));
  }
  return static_cast<size_t>(shape.elements()) / format.block_elements;
}

}  // namespace

TensorSource EncodedTensor::source(std::string name) const {
  TensorSource source{std::move(name), format, shape, {}, nullptr};
  for (size_t i = 0; i < parts.size(); ++i) {
    source.segments.push_back(part_of(*format, shape, i));
    source.segments.back().bytes = parts[i];
  }
  return source;
}

TensorSegment part_of(const WeightFormat& format, const Shape& shape, size_t index) {
  const WeightFormat::Part& part = format.parts.at(index);
  if (shape.rank() == 0) return {part.dtype, shape, {}};
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy(shape.dims().begin(), shape.dims().end(), dims.begin());
  dims[shape.rank() - 1] = shape.back() / format.block_elements * part.elements;
  return {part.dtype, Shape(std::span<const int64_t>(dims.data(), shape.rank())), {}};
}

void check_parts(const TensorSource& source) {
  if (source.format == nullptr) fail(source.name, "expected a format, got none");
  const WeightFormat& format = *source.format;
  const size_t blocks = blocks_of(format, source.shape, source.name);
  if (source.segments.size() != format.part_count()) {
    fail(source.name, fmt::format("{}: expected {} segments, got {}", format.name, format.part_count(),
                                  source.segments.size()));
  }
  for (size_t i = 0; i < source.segments.size(); ++i) {
    const std::optional<size_t> expected = checked_mul(blocks, format.parts[i].block_bytes());
    const size_t got = source.segments[i].bytes.size();
    if (!expected) fail(source.name, "expected fewer elements, got " + to_string(source.shape));
    if (got != *expected)
      fail(source.name,
           fmt::format("{}: expected {} bytes in segment {}, got {}", format.name, *expected, i, got));
  }
}

EncodedTensor encode(const WeightFormat& format, const Shape& shape, std::span<const float> values) {
  if (format.encode == nullptr) fail(format.name, "expected a format that can be made");
  const size_t blocks = blocks_of(format, shape, "encode");
  if (values.size() != static_cast<size_t>(shape.elements()))
    fail("encode", fmt::format("expected {} values, got {}", shape.elements(), values.size()));
  EncodedTensor tensor{&format, shape, {}};
  std::array<std::byte*, WeightFormat::kMaxParts> parts{};
  for (size_t i = 0; i < format.part_count(); ++i)
    parts[i] = tensor.parts.emplace_back(blocks * format.parts[i].block_bytes()).data();
  if (!format.encode(format, values.data(), blocks, parts.data())) fail("encode", "expected finite values");
  return tensor;
}

std::vector<float> decode(const TensorSource& source) {
  check_parts(source);
  if (source.format->decode == nullptr)
    fail(source.name, fmt::format("{}: expected a format of floating-point values", source.format->name));
  std::array<const std::byte*, WeightFormat::kMaxParts> parts{};
  for (size_t i = 0; i < source.segments.size(); ++i) parts[i] = source.segments[i].bytes.data();
  std::vector<float> values(static_cast<size_t>(source.shape.elements()));
  source.format->decode(*source.format, parts.data(), values.size() / source.format->block_elements,
                        values.data());
  return values;
}

bool same_bytes(const TensorSource& a, const TensorSource& b) {
  return a.format == b.format && a.shape == b.shape &&
         std::ranges::equal(a.segments, b.segments, [](const TensorSegment& x, const TensorSegment& y) {
           return x.bytes.size() == y.bytes.size() &&
                  (x.bytes.empty() || std::memcmp(x.bytes.data(), y.bytes.data(), x.bytes.size()) == 0);
         });
}

}  // namespace refrain::format

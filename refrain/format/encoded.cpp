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

/// As many values as there is room for, from element `first` on: whole blocks.
void decode_from(const TensorSource& source, size_t first, std::span<float> values) {
  const WeightFormat& format = *source.format;
  std::array<const std::byte*, WeightFormat::kMaxParts> parts{};
  for (size_t i = 0; i < source.segments.size(); ++i)
    parts[i] =
        source.segments[i].bytes.data() + first / format.block_elements * format.parts[i].block_bytes();
  format.decode(format, parts.data(), values.size() / format.block_elements, values.data());
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
  std::vector<float> values(static_cast<size_t>(source.shape.elements()));
  decode_from(source, 0, values);
  return values;
}

bool same_values(const TensorSource& a, const TensorSource& b) {
  check_parts(a), check_parts(b);
  if (a.shape != b.shape) return false;
  const auto same_bytes = [](const TensorSegment& x, const TensorSegment& y) {
    return std::ranges::equal(x.bytes, y.bytes);
  };
  if (a.format == b.format && std::ranges::equal(a.segments, b.segments, same_bytes)) return true;
  if (a.format->decode == nullptr || b.format->decode == nullptr) return false;
  // Row by row: whole tensors may take much memory.
  const size_t columns = a.shape.rank() == 0 ? 1 : static_cast<size_t>(a.shape.back());
  std::vector<float> x(columns), y(columns);
  for (size_t done = 0; done < static_cast<size_t>(a.shape.elements()); done += columns) {
    decode_from(a, done, x), decode_from(b, done, y);
    if (std::memcmp(x.data(), y.data(), columns * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace refrain::format

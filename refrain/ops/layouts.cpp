// The weight layouts of the CPU kernels. Packing copies bytes; unpacking is plain arithmetic, for tests.
#include "refrain/ops/layouts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "refrain/core/error.h"
#include "refrain/core/half.h"

namespace refrain::ops {
namespace {

using backend::PackedBytes;
using backend::RowRange;
using backend::Use;
using backend::Uses;
using backend::WeightInfo;
using backend::WeightLayout;

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

size_t elements(const WeightInfo& weight) { return static_cast<size_t>(weight.shape.elements()); }

/// Element `index` of packed floats of a dtype, at any address.
float element(const std::byte* from, DType dtype, size_t index) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, from + index * sizeof(value), sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from + index * sizeof(bits), sizeof(bits));
  return dtype == DType::f16 ? f16{bits}.to_float() : bf16{bits}.to_float();
}

void expect_segments(const TensorSource& source, const WeightLayout& layout,
                     std::initializer_list<size_t> bytes) {
  const auto fail = [&](size_t expected, size_t got, const char* what) {
    throw InvalidArgument(fmt::format("[pack] {}: layout {}: expected {} {}, got {}", source.name,
                                      layout.name, expected, what, got));
  };
  if (source.segments.size() != bytes.size()) fail(bytes.size(), source.segments.size(), "segments");
  size_t index = 0;
  for (const size_t expected : bytes) {
    const size_t got = source.segments[index++].bytes.size();
    if (got != expected) fail(expected, got, "bytes in a segment");
  }
}

bool vector_accepts(const WeightInfo& weight, Uses uses) {
  return weight.format == WeightFormat::plain && is_float(weight.dtype) && weight.shape.rank() == 1 &&
         uses.within({Use::vector});
}

/// Copies `bytes` of each of the rows from where a part of the source has them to its place in the packed form.
void copy_rows(const TensorSegment& from, size_t row_bytes, RowRange range, size_t offset_bytes,
               const PackedBytes& packed) {
  const size_t begin = range.begin * row_bytes, bytes = range.end * row_bytes - begin;
  std::ranges::copy(from.bytes.subspan(begin, bytes), packed(offset_bytes + begin, bytes).begin());
}

size_t vector_bytes(const WeightInfo& weight) { return elements(weight) * sizeof(float); }

void vector_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
                 const PackedBytes& packed) {
  expect_segments(source, vector_f32(), {elements(weight) * size_bytes(weight.dtype)});
  std::byte* to = packed(range.begin * sizeof(float), (range.end - range.begin) * sizeof(float)).data();
  for (size_t i = range.begin; i < range.end; ++i, to += sizeof(float)) {
    const float value = element(source.segments[0].bytes.data(), weight.dtype, i);
    std::memcpy(to, &value, sizeof(value));
  }
}

void vector_unpack(const WeightInfo& weight, std::span<const std::byte> packed, std::span<float> values) {
  for (size_t i = 0; i < elements(weight); ++i) values[i] = element(packed.data(), DType::f32, i);
}

bool rows_accepts(const WeightInfo& weight, Uses uses) {
  return weight.format == WeightFormat::plain && is_float(weight.dtype) && weight.shape.rank() == 2 &&
         uses.within({Use::matvec, Use::matmul, Use::gather});
}

size_t rows_bytes(const WeightInfo& weight) { return elements(weight) * size_bytes(weight.dtype); }

void rows_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
               const PackedBytes& packed) {
  expect_segments(source, rows(), {rows_bytes(weight)});
  copy_rows(source.segments[0], static_cast<size_t>(weight.shape[1]) * size_bytes(weight.dtype), range, 0,
            packed);
}

void rows_unpack(const WeightInfo& weight, std::span<const std::byte> packed, std::span<float> values) {
  for (size_t i = 0; i < elements(weight); ++i) values[i] = element(packed.data(), weight.dtype, i);
}

bool affine_accepts(const WeightInfo& weight, Uses uses) {
  const bool group = weight.group_size == 32 || weight.group_size == 64 || weight.group_size == 128;
  return weight.format == WeightFormat::mlx_affine && is_float(weight.dtype) && weight.shape.rank() == 2 &&
         (weight.bits == 4 || weight.bits == 8) && group && weight.shape[1] % weight.group_size == 0 &&
         uses.within({Use::matvec, Use::matmul, Use::gather});
}

AffinePlanes planes_of(const WeightInfo& weight) {
  return {static_cast<size_t>(weight.shape[0]), static_cast<size_t>(weight.shape[1]), weight.bits,
          weight.group_size, weight.dtype};
}

size_t affine_bytes(const WeightInfo& weight) { return planes_of(weight).bytes; }

void affine_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
                 const PackedBytes& packed) {
  const AffinePlanes planes = planes_of(weight);
  const size_t row_count = static_cast<size_t>(weight.shape[0]);
  const size_t codes_bytes = row_count * planes.codes_row_bytes;
  const size_t plane_bytes = row_count * planes.groups * size_bytes(weight.dtype);
  expect_segments(source, mlx_affine_rows(), {codes_bytes, plane_bytes, plane_bytes});
  const size_t begins[] = {0, planes.scales_offset_bytes, planes.biases_offset_bytes, planes.bytes};
  const size_t group_bytes = planes.groups * size_bytes(weight.dtype);
  const size_t row_bytes[] = {planes.codes_row_bytes, group_bytes, group_bytes};
  for (size_t part = 0; part < 3; ++part) {
    copy_rows(source.segments[part], row_bytes[part], range, begins[part], packed);
    // The last rows bring the zeros up to the next part.
    const size_t end = begins[part] + row_count * row_bytes[part];
    if (range.end == row_count) std::ranges::fill(packed(end, begins[part + 1] - end), std::byte{0});
  }
}

void affine_unpack(const WeightInfo& weight, std::span<const std::byte> packed, std::span<float> values) {
  const AffinePlanes planes = planes_of(weight);
  const size_t columns = static_cast<size_t>(weight.shape[1]);
  const uint32_t mask = (1u << weight.bits) - 1;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t row = i / columns, column = i % columns;
    const size_t bit = column * weight.bits;  // of the row's little-endian byte stream
    const auto byte = std::to_integer<uint32_t>(packed[row * planes.codes_row_bytes + bit / 8]);
    const auto code = static_cast<float>((byte >> (bit % 8)) & mask);
    const size_t group = row * planes.groups + column / weight.group_size;
    const float scale = element(packed.data() + planes.scales_offset_bytes, weight.dtype, group);
    const float bias = element(packed.data() + planes.biases_offset_bytes, weight.dtype, group);
    values[i] = scale * code + bias;
  }
}

constexpr WeightLayout kLayouts[] = {
    {"vector_f32", vector_accepts, vector_bytes, vector_pack, vector_unpack, false},
    {"rows", rows_accepts, rows_bytes, rows_pack, rows_unpack, true},
    {"mlx_affine_rows", affine_accepts, affine_bytes, affine_pack, affine_unpack, false},
};

}  // namespace

void pack_whole(const WeightLayout& layout, const TensorSource& source, const WeightInfo& weight,
                std::span<std::byte> packed) {
  layout.pack(source, weight, {0, backend::row_count(weight.shape)},
              [packed](size_t offset_bytes, size_t bytes) { return packed.subspan(offset_bytes, bytes); });
}

std::span<const WeightLayout> cpu_layouts() { return kLayouts; }
const WeightLayout& vector_f32() { return kLayouts[0]; }
const WeightLayout& rows() { return kLayouts[1]; }
const WeightLayout& mlx_affine_rows() { return kLayouts[2]; }

}  // namespace refrain::ops

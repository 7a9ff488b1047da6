// The weight layouts of the CPU kernels. Packing copies bytes; unpacking is what the formats decode.
#include "refrain/ops/layouts.h"

#include <algorithm>

#include "refrain/format/codes.h"
#include "refrain/format/encoded.h"
#include "refrain/format/plain.h"

namespace refrain::ops {
namespace {

using backend::PackedBytes;
using backend::row_count;
using backend::RowRange;
using backend::Use;
using backend::Uses;
using backend::WeightInfo;
using backend::WeightLayout;

bool is_plain(const WeightInfo& weight) {
  return weight.format->bits == 0 && weight.format->decode != nullptr;
}

bool is_matrix(const WeightInfo& weight, Uses uses) {
  return weight.shape.rank() == 2 && weight.shape[1] % weight.format->block_elements == 0 &&
         uses.within({Use::matvec, Use::matmul, Use::gather});
}

size_t columns_of(const WeightInfo& weight) { return static_cast<size_t>(weight.shape.back()); }

size_t part_row_bytes(const WeightInfo& weight, size_t part) {
  return columns_of(weight) / weight.format->block_elements * weight.format->parts[part].block_bytes();
}

bool vector_accepts(const WeightInfo& weight, Uses uses) {
  return is_plain(weight) && weight.shape.rank() == 1 && uses.within({Use::vector});
}

size_t vector_bytes(const WeightInfo& weight) { return columns_of(weight) * sizeof(float); }

void vector_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
                 const PackedBytes& packed) {
  format::check_parts(source);
  const size_t count = range.end - range.begin;
  const std::byte* from =
      source.segments[0].bytes.data() + range.begin * weight.format->parts[0].block_bytes();
  const std::span<std::byte> to = packed(range.begin * sizeof(float), count * sizeof(float));
  weight.format->decode(*weight.format, &from, count, reinterpret_cast<float*>(to.data()));
}

void vector_unpack(const WeightInfo&, const std::byte* packed, RowRange range, float* values) {
  const auto* from = reinterpret_cast<const float*>(packed);
  std::copy(from + range.begin, from + range.end, values);
}

bool rows_accepts(const WeightInfo& weight, Uses uses) { return is_plain(weight) && is_matrix(weight, uses); }

size_t rows_bytes(const WeightInfo& weight) { return row_count(weight.shape) * part_row_bytes(weight, 0); }

void rows_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
               const PackedBytes& packed) {
  format::check_parts(source);
  const size_t row_bytes = part_row_bytes(weight, 0);
  const size_t begin = range.begin * row_bytes, bytes = range.end * row_bytes - begin;
  std::ranges::copy(source.segments[0].bytes.subspan(begin, bytes), packed(begin, bytes).begin());
}

void rows_unpack(const WeightInfo& weight, const std::byte* packed, RowRange range, float* values) {
  const std::byte* from = packed + range.begin * part_row_bytes(weight, 0);
  weight.format->decode(*weight.format, &from, (range.end - range.begin) * columns_of(weight), values);
}

bool grouped_accepts(const WeightInfo& weight, Uses uses) {
  return weight.format->bits != 0 && format::has_codes(*weight.format) && is_matrix(weight, uses);
}

size_t grouped_bytes(const WeightInfo& weight) {
  return row_count(weight.shape) * CodedRow(*weight.format, columns_of(weight)).bytes;
}

void grouped_pack(const TensorSource& source, const WeightInfo& weight, RowRange range,
                  const PackedBytes& packed) {
  format::check_parts(source);
  const WeightFormat& format = *weight.format;
  const CodedRow row(format, columns_of(weight));
  const size_t begins[] = {0, row.scales_offset_bytes, row.biases_offset_bytes};
  const size_t codes_bytes = format.block_elements * format.bits / 8, scale_bytes = size_bytes(format.dtype);
  std::byte* to = packed(range.begin * row.bytes, (range.end - range.begin) * row.bytes).data();
  for (size_t r = range.begin; r < range.end; ++r, to += row.bytes) {
    for (size_t part = 0; part < source.segments.size(); ++part) {
      const size_t bytes = part_row_bytes(weight, part);
      const std::byte* from = source.segments[part].bytes.data() + r * bytes;
      if (format.separate == nullptr) {
        std::copy_n(from, bytes, to + begins[part]);
        continue;
      }
      for (size_t group = 0; group < row.groups; ++group) {
        format.separate(from + group * format.parts[0].block_bytes(), to + group * codes_bytes,
                        to + row.scales_offset_bytes + group * scale_bytes);
      }
    }
    std::fill(to + row.used_bytes, to + row.bytes, std::byte{0});
  }
}

void grouped_unpack(const WeightInfo& weight, const std::byte* packed, RowRange range, float* values) {
  const CodedRow row(*weight.format, columns_of(weight));
  for (size_t r = range.begin; r < range.end; ++r, values += columns_of(weight)) {
    const std::byte* from = packed + r * row.bytes;
    format::decode_groups(*weight.format,
                          {from, from + row.scales_offset_bytes, from + row.biases_offset_bytes}, row.groups,
                          values);
  }
}

constexpr WeightLayout kLayouts[] = {
    {.name = "vector_f32",
     .accepts = vector_accepts,
     .packed_bytes = vector_bytes,
     .pack = vector_pack,
     .unpack = vector_unpack},
    {.name = "rows",
     .accepts = rows_accepts,
     .packed_bytes = rows_bytes,
     .pack = rows_pack,
     .unpack = rows_unpack,
     .as_stored = true},
    {.name = "grouped",
     .accepts = grouped_accepts,
     .packed_bytes = grouped_bytes,
     .pack = grouped_pack,
     .unpack = grouped_unpack},
};

}  // namespace

void pack_whole(const WeightLayout& layout, const TensorSource& source, const WeightInfo& weight,
                std::span<std::byte> packed) {
  layout.pack(source, weight, {0, row_count(weight.shape)},
              [packed](size_t offset_bytes, size_t bytes) { return packed.subspan(offset_bytes, bytes); });
}

std::span<const WeightLayout> cpu_layouts() { return kLayouts; }
const WeightLayout& vector_f32() { return kLayouts[0]; }
const WeightLayout& rows() { return kLayouts[1]; }
const WeightLayout& grouped() { return kLayouts[2]; }
const WeightLayout& matrix_layout(const WeightFormat& format) {
  return format.bits == 0 ? rows() : grouped();
}

}  // namespace refrain::ops

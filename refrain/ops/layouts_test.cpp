// Layouts and tables: packing from any address, what is accepted, every op in the tables.
#include "refrain/ops/layouts.h"

#include <set>

#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;
using backend::Use;
using backend::WeightInfo;

WeightInfo plain(DType dtype, const Shape& shape) { return {&format::plain(dtype), shape}; }

TEST(Layouts, EachWeightHasTheLayoutOfItsUse) {
  const WeightInfo affine{&format::mlx_affine({4, 64}, DType::bf16), {4, 64}};
  EXPECT_TRUE(vector_f32().accepts(plain(DType::bf16, {8}), {Use::vector}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::bf16, {2, 4}), {Use::vector}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::bf16, {8}), {Use::vector, Use::gather}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::u32, {8}), {Use::vector}));
  EXPECT_TRUE(rows().accepts(plain(DType::f16, {2, 4}), {Use::matvec, Use::matmul, Use::gather}));
  EXPECT_FALSE(rows().accepts(plain(DType::f16, {2, 4}), {Use::vector}));
  EXPECT_FALSE(rows().accepts(affine, {Use::matvec}));
  EXPECT_TRUE(grouped().accepts(affine, {Use::matvec, Use::matmul, Use::gather}));
  EXPECT_FALSE(grouped().accepts({affine.format, {4, 96}}, {Use::matvec}));
  EXPECT_FALSE(grouped().accepts({affine.format, {64}}, {Use::vector}));
  WeightFormat seven = *affine.format;  // of nobody
  seven.bits = 7;
  EXPECT_FALSE(grouped().accepts({&seven, {4, 64}}, {Use::matvec}));
  EXPECT_TRUE(rows().as_stored);
  EXPECT_EQ(cpu_layouts().size(), 3u);
}

TEST(Layouts, PackFromAnyAddress) {
  Random random;
  std::vector<float> values(6 * 64);
  for (float& value : values) value = random.uniform();
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const std::vector<std::byte> bytes = encode(dtype, values);
    for (size_t shift = 0; shift < 4; ++shift) {
      std::vector<std::byte> shifted(shift);
      shifted.insert(shifted.end(), bytes.begin(), bytes.end());
      const std::span<const std::byte> segment = std::span(shifted).subspan(shift);
      for (const Shape& shape : {Shape{6 * 64}, Shape{6, 64}}) {
        const backend::WeightLayout& layout = shape.rank() == 1 ? vector_f32() : rows();
        const PackedWeight weight = pack(format::plain_tensor("w", dtype, shape, segment), layout);
        std::vector<float> unpacked(values.size());
        layout.unpack(weight.info, weight.bytes.data(), {0, backend::row_count(shape)}, unpacked.data());
        for (size_t i = 0; i < values.size(); ++i) {
          const float expected = dtype == DType::f32    ? values[i]
                                 : dtype == DType::bf16 ? bf16::from_float(values[i]).to_float()
                                                        : f16::from_float(values[i]).to_float();
          ASSERT_EQ(unpacked[i], expected);
          ASSERT_EQ(weight.values[i], expected);
        }
      }
    }
  }
}

TEST(Layouts, UnpackGivesWhatEachFormatDecodesTo) {
  Random random;
  constexpr size_t kRows = 7;
  for (const WeightFormat* format : matrix_formats()) {
    for (const int64_t blocks : {1, 2, 5}) {
      const int64_t columns = blocks * format->block_elements;
      const PackedWeight weight = random_weight(*format, kRows, columns, random);
      for (size_t end = kRows, count = 1; end > 0; end -= count, count = std::min(count + 1, end)) {
        const Array<float> values(count * static_cast<size_t>(columns));
        weight.layout->unpack(weight.info, weight.bytes.data(), {end - count, end}, values.data());
        const float* expected = weight.values.data() + (end - count) * static_cast<size_t>(columns);
        EXPECT_EQ(std::memcmp(values.data(), expected, values.size() * sizeof(float)), 0) << format->name;
      }
    }
  }
}

TEST(Layouts, CodedRowsAreAlignedAndCodesLieLowestFirst) {
  // One row of 32 codes 0, 1, 2, ... 15, 0, 1, ...: each word holds 0x76543210 or 0xFEDCBA98.
  std::vector<std::byte> bytes(1 + 16 + 2 + 2);  // one byte in front: misaligned
  for (size_t i = 0; i < 16; ++i) bytes[1 + i] = std::byte((2 * i) % 16 | ((2 * i + 1) % 16) << 4);
  const uint16_t scale = bf16::from_float(-0.5f).bits, bias = bf16::from_float(3).bits;
  std::memcpy(&bytes[17], &scale, 2);
  std::memcpy(&bytes[19], &bias, 2);
  const std::span<const std::byte> all = bytes;
  TensorSource source{"w", &format::mlx_affine({4, 32}, DType::bf16), {1, 32}, {}, nullptr};
  source.segments = {{DType::u32, {1, 4}, all.subspan(1, 16)},
                     {DType::bf16, {1, 1}, all.subspan(17, 2)},
                     {DType::bf16, {1, 1}, all.subspan(19, 2)}};
  const PackedWeight weight = pack(source, grouped());
  EXPECT_EQ(weight.bytes.size(), 32u);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(weight.values[i], 3 - 0.5f * static_cast<float>(i % 16));
  source.segments[1].bytes = all.subspan(17, 1);
  EXPECT_THROW(pack(source, grouped()), InvalidArgument);
  source.segments.pop_back();
  EXPECT_THROW(pack(source, grouped()), InvalidArgument);
}

TEST(Layouts, ASourceThatContradictsItselfIsRefused) {
  Random random;
  const std::pair<format::EncodedTensor, const backend::WeightLayout*> kCases[] = {
      {random_tensor(format::plain(DType::bf16), {8}, random), &vector_f32()},
      {random_tensor(format::plain(DType::f16), {4, 96}, random), &rows()},
      {random_tensor(format::mlx_affine({4, 32}, DType::bf16), {4, 96}, random), &grouped()}};
  for (const auto& [tensor, layout] : kCases) {
    TensorSource source = tensor.source("w");
    const WeightInfo info{source.format, source.shape};
    std::vector<std::byte> packed(layout->packed_bytes(info));
    pack_whole(*layout, source, info, packed);
    std::span<const std::byte>& last = source.segments.back().bytes;
    last = last.first(last.size() - 1);
    EXPECT_THROW(pack_whole(*layout, source, info, packed), InvalidArgument) << layout->name;
  }
}

TEST(Layouts, RangesOfRowsFillEachByteOnce) {
  Random random;
  const format::EncodedTensor vector = random_tensor(format::plain(DType::bf16), {37}, random);
  const format::EncodedTensor matrix = random_tensor(format::plain(DType::f16), {37, 96}, random);
  const format::EncodedTensor affine =
      random_tensor(format::mlx_affine({4, 32}, DType::bf16), {37, 96}, random);
  const format::EncodedTensor blocks = random_tensor(format::q4_0(), {37, 96}, random);
  const std::pair<const format::EncodedTensor*, const backend::WeightLayout*> kCases[] = {
      {&vector, &vector_f32()}, {&matrix, &rows()}, {&affine, &grouped()}, {&blocks, &grouped()}};
  for (const auto& [tensor, layout] : kCases) {
    const TensorSource source = tensor->source("w");
    const PackedWeight whole = pack(source, *layout);
    const size_t row_count = backend::row_count(source.shape);
    for (const size_t step : {size_t{1}, size_t{5}, size_t{36}, size_t{37}}) {
      const size_t part = (step + layout->pack_rows - 1) / layout->pack_rows * layout->pack_rows;
      std::vector<std::byte> packed(whole.bytes.size(), std::byte{0xEE});
      std::vector<int> filled(packed.size());
      const backend::PackedBytes target = [&](size_t offset, size_t count) {
        for (size_t i = 0; i < count; ++i) ++filled[offset + i];
        return std::span(packed).subspan(offset, count);
      };
      for (size_t end = row_count; end > 0;) {  // the last first: ranges do not know of each other
        const size_t begin = (end - 1) / part * part;
        layout->pack(source, whole.info, {begin, end}, target);
        end = begin;
      }
      EXPECT_TRUE(std::ranges::equal(packed, whole.bytes)) << layout->name << " by " << part;
      EXPECT_EQ(std::ranges::count(filled, 1), static_cast<ptrdiff_t>(packed.size())) << layout->name;
    }
  }
}

TEST(KernelTables, EveryOpHasASchemaAndKernels) {
  const std::vector<backend::Kernel> kernels = cpu_kernels(), nothing = null_kernels();
  std::set<std::string_view> names;
  for (const backend::Kernel& kernel : kernels) {
    EXPECT_TRUE(names.insert(kernel.name).second) << kernel.name;
    EXPECT_TRUE(kernel.name.starts_with(kernel.op->name)) << kernel.name;
    EXPECT_FALSE(kernel.numerics.empty()) << kernel.name;
    EXPECT_NE(kernel.accepts, nullptr);
    EXPECT_NE(kernel.launch, nullptr);
    EXPECT_NE(static_cast<const backend::TileKernel*>(kernel.entry)->tiles, nullptr);
  }
  for (const backend::OpSchema* schema : all_schemas()) {
    EXPECT_NE(schema->check, nullptr);
    EXPECT_NE(schema->cost, nullptr);
    EXPECT_NE(schema->reference, nullptr);
    const auto of_op = [schema](const backend::Kernel& kernel) { return kernel.op == schema; };
    EXPECT_EQ(std::ranges::count_if(nothing, of_op), 1) << schema->name;
    // Portable kernels come after those that need something.
    bool portable = false;
    for (const backend::Kernel& kernel : kernels) {
      if (!of_op(kernel)) continue;
      EXPECT_FALSE(portable && kernel.needs != 0) << kernel.name;
      portable = portable || kernel.needs == 0;
    }
    EXPECT_TRUE(portable) << schema->name;
  }
}

}  // namespace
}  // namespace refrain::ops

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

WeightInfo plain(DType dtype, const Shape& shape) { return {WeightFormat::plain, dtype, shape, 0, 0}; }

TEST(Layouts, EachWeightHasTheLayoutOfItsUse) {
  const WeightInfo affine{WeightFormat::mlx_affine, DType::bf16, {4, 64}, 4, 64};
  EXPECT_TRUE(vector_f32().accepts(plain(DType::bf16, {8}), {Use::vector}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::bf16, {2, 4}), {Use::vector}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::bf16, {8}), {Use::vector, Use::gather}));
  EXPECT_FALSE(vector_f32().accepts(plain(DType::u32, {8}), {Use::vector}));
  EXPECT_TRUE(rows().accepts(plain(DType::f16, {2, 4}), {Use::matvec, Use::matmul, Use::gather}));
  EXPECT_FALSE(rows().accepts(plain(DType::f16, {2, 4}), {Use::vector}));
  EXPECT_FALSE(rows().accepts(affine, {Use::matvec}));
  EXPECT_TRUE(mlx_affine_rows().accepts(affine, {Use::matvec, Use::matmul, Use::gather}));
  for (const auto& [bits, group] : {std::pair{3u, 64u}, {4u, 16u}, {8u, 96u}, {0u, 0u}, {4u, 128u}}) {
    WeightInfo other = affine;
    other.bits = bits;
    other.group_size = group;
    EXPECT_FALSE(mlx_affine_rows().accepts(other, {Use::matvec})) << bits << " bits, group " << group;
  }
  EXPECT_TRUE(rows().as_stored);
  EXPECT_EQ(cpu_layouts().size(), 3u);
}

TEST(Layouts, PackFromAnyAddressAndUnpack) {
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
        const PackedWeight weight =
            pack({"w", WeightFormat::plain, dtype, shape, 0, 0, {{dtype, shape, segment}}, nullptr}, layout);
        for (size_t i = 0; i < values.size(); ++i) {
          const float expected = dtype == DType::f32    ? values[i]
                                 : dtype == DType::bf16 ? bf16::from_float(values[i]).to_float()
                                                        : f16::from_float(values[i]).to_float();
          ASSERT_EQ(weight.values[i], expected);
        }
      }
    }
  }
}

TEST(Layouts, AffinePlanesAreAlignedAndCodesLieLowestFirst) {
  // One row of 32 codes 0, 1, 2, ... 15, 0, 1, ...: each word holds 0x76543210 or 0xFEDCBA98.
  std::vector<std::byte> bytes(1 + 16 + 2 + 2);  // one byte in front: misaligned
  for (size_t i = 0; i < 16; ++i) bytes[1 + i] = std::byte((2 * i) % 16 | ((2 * i + 1) % 16) << 4);
  const uint16_t scale = bf16::from_float(-0.5f).bits, bias = bf16::from_float(3).bits;
  std::memcpy(&bytes[17], &scale, 2);
  std::memcpy(&bytes[19], &bias, 2);
  const std::span<const std::byte> all = bytes;
  TensorSource source{"w", WeightFormat::mlx_affine, DType::bf16, {1, 32}, 4, 32, {}, nullptr};
  source.segments = {{DType::u32, {1, 4}, all.subspan(1, 16)},
                     {DType::bf16, {1, 1}, all.subspan(17, 2)},
                     {DType::bf16, {1, 1}, all.subspan(19, 2)}};
  const PackedWeight weight = pack(source, mlx_affine_rows());
  EXPECT_EQ(weight.bytes.size(), 192u);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(weight.values[i], 3 - 0.5f * static_cast<float>(i % 16));
  source.segments[1].bytes = all.subspan(17, 1);
  EXPECT_THROW(pack(source, mlx_affine_rows()), InvalidArgument);
  source.segments.pop_back();
  EXPECT_THROW(pack(source, mlx_affine_rows()), InvalidArgument);
}

TEST(Layouts, RangesOfRowsFillEachByteOnce) {
  Random random;
  std::vector<std::byte> bytes(37 * 96 * 4);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  const std::span<const std::byte> all = bytes;
  TensorSource vector{"v", WeightFormat::plain, DType::bf16, {37}, 0, 0, {}, nullptr};
  vector.segments = {{DType::bf16, {37}, all.first(37 * 2)}};
  TensorSource matrix{"m", WeightFormat::plain, DType::f16, {37, 96}, 0, 0, {}, nullptr};
  matrix.segments = {{DType::f16, {37, 96}, all.first(37 * 96 * 2)}};
  TensorSource affine{"a", WeightFormat::mlx_affine, DType::bf16, {37, 96}, 4, 32, {}, nullptr};
  affine.segments = {{DType::u32, {37, 12}, all.first(37 * 48)},
                     {DType::bf16, {37, 3}, all.subspan(37 * 48, 37 * 6)},
                     {DType::bf16, {37, 3}, all.subspan(37 * 54, 37 * 6)}};
  const std::pair<const TensorSource*, const backend::WeightLayout*> kCases[] = {
      {&vector, &vector_f32()}, {&matrix, &rows()}, {&affine, &mlx_affine_rows()}};
  for (const auto& [source, layout] : kCases) {
    const PackedWeight whole = pack(*source, *layout);
    const size_t row_count = backend::row_count(source->shape);
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
        layout->pack(*source, whole.info, {begin, end}, target);
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
    EXPECT_FALSE(schema->doc.empty()) << schema->name;
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

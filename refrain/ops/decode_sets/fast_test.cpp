// Kernels of the mode fast against the references in double, on the device that REFRAIN_TEST_DEVICE names: with bounds of
// their own, derived where they are. That sets of commands give the bits of these kernels, tests of whole models show.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "refrain/ops/attention/attention.h"
#include "refrain/ops/decode_sets/tiles.h"
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/silu_mul/silu_mul.h"
#include "refrain/ops/test_step.h"

namespace refrain::ops {
namespace {

using namespace harness;

/// The device's kernels of an op that only the mode fast grants.
std::vector<const backend::Kernel*> fast_kernels(const backend::OpSchema& schema) {
  std::vector<const backend::Kernel*> list;
  if (test_device() == nullptr) return list;
  for (const backend::Kernel& kernel : test_device()->kernels) {
    if (kernel.op == &schema && (kernel.needs & backend::kFeatureFast) != 0) list.push_back(&kernel);
  }
  return list;
}

#define SKIP_WITHOUT(list) \
  if ((list).empty()) GTEST_SKIP() << "REFRAIN_TEST_DEVICE names no device with such kernels"

// Inputs of a pair of groups are multiples of max|x| / 1,024 at most, so each is off by half of that; what a sum of n products
// adds in f32 is a tree of eight pairs within 1,024 columns, then 1,024 after 1,024.
TEST(Fast, Matmul) {
  const auto kernels = fast_kernels(matmul_schema);
  SKIP_WITHOUT(kernels);
  Random random;
  for (const auto& [rows, outputs, columns] :
       {std::array{1, 5, 64}, std::array{1, 1000, 1024}, std::array{3, 37, 1088}, std::array{2, 130, 14336},
        std::array{70, 130, 4096}}) {
    const format::EncodedTensor tensor =
        random_tensor(format::mlx_affine({4, 64}, DType::bf16), {outputs, columns}, random);
    const PackedWeight weight = pack(tensor.source("w"), tiles_4x1024());
    const auto n = static_cast<size_t>(outputs), k = static_cast<size_t>(columns);
    Array<float> input(static_cast<size_t>(rows) * k), got(static_cast<size_t>(rows) * n, -7);
    random.fill(input, -3, 3);
    input[k / 2] = 40;
    if (rows > 1) input[k + 1] = std::nextafter(4.0f, 0.0f);  // just below a power of two
    for (const backend::Kernel* kernel : kernels) {
      Call call(matmul_schema);
      call.tensor({rows, columns}, input).weight(weight).tensor({rows, outputs}, got);
      call.constants(MatmulConstants{static_cast<uint32_t>(rows), static_cast<uint32_t>(outputs),
                                     static_cast<uint32_t>(columns), tensor.format});
      call.run(*kernel, static_cast<uint32_t>(rows));
      for (size_t i = 0; i < got.size(); ++i) {
        double sum = 0, bound = 0;
        for (size_t pair = 0; pair < k; pair += 2 * kTileGroup) {
          double greatest = 0, weights = 0, products = 0, values = 0;
          for (size_t j = pair; j < std::min(k, pair + 2 * kTileGroup); ++j) {
            const double x = static_cast<double>(input[i / n * k + j]),
                         w = static_cast<double>(weight.values[i % n * k + j]);
            sum += x * w;
            greatest = std::max(greatest, std::abs(x));
            weights += std::abs(w);
            products += std::abs(x * w);
            values += std::abs(x);
          }
          // scale * code + bias is exact here, in the format it is rounded: 8 bits of a sum of scale and bias.
          bound += weights * greatest / 2048 +
                   products * (4 + 4 + static_cast<double>(k) / 1024) * kUnitRoundoff +
                   values * 16 * kUnitRoundoff;
        }
        ASSERT_NEAR(static_cast<double>(got[i]), sum, bound)
            << kernel->name << ' ' << rows << " x " << outputs << " x " << columns << ", " << i;
      }
    }
  }
}

// One row is multiplied from registers, a few through a ring, many by tensor cores.
TEST(Fast, MatmulOfAnyRowsGivesTheBitsOfOne) {
  const auto kernels = fast_kernels(matmul_schema);
  SKIP_WITHOUT(kernels);
  Random random;
  for (const auto& [outputs, columns] :
       {std::array{5u, 64u}, std::array{132u, 1088u}, std::array{900u, 4096u}}) {
    constexpr uint32_t kRows = 200;
    const format::EncodedTensor tensor =
        random_tensor(format::mlx_affine({4, 64}, DType::bf16), {outputs, columns}, random);
    const PackedWeight weight = pack(tensor.source("w"), tiles_4x1024());
    Array<float> input(size_t{kRows} * columns);
    random.fill(input, -3, 3);
    const auto group = [&](uint32_t row) {
      return std::span(input).subspan(size_t{row} * columns, kTileGroup);
    };
    group(1)[5] = std::numeric_limits<float>::quiet_NaN();
    group(2)[6] = -std::numeric_limits<float>::infinity();
    for (float& x : group(3)) x *= 1e-38f;
    for (float& x : group(4)) x *= 1e30f;
    std::ranges::fill(group(5), 0.0f);
    group(6)[7] = std::nextafter(4.0f, 0.0f);
    group(7)[8] = -std::ldexp(1.9999f, 113);  // of the greatest that are quantized
    group(8)[9] = std::ldexp(1.0f, 114);
    const auto run = [&](const backend::Kernel& kernel, uint32_t first, uint32_t rows, uint32_t live) {
      Array<float> part(size_t{rows} * columns), got(size_t{rows} * outputs, -7);
      std::copy_n(input.begin() + static_cast<ptrdiff_t>(size_t{first} * columns), part.size(), part.begin());
      Call call(matmul_schema);
      call.tensor({rows, columns}, part).weight(weight).tensor({rows, outputs}, got);
      call.constants(MatmulConstants{rows, outputs, columns, tensor.format});
      call.run(kernel, live);
      return std::vector<float>(got.begin(), got.end());
    };
    for (const backend::Kernel* kernel : kernels) {
      std::vector<float> expected;
      for (uint32_t r = 0; r < kRows; ++r) {
        const std::vector<float> row = run(*kernel, r, 1, 1);
        EXPECT_EQ(std::ranges::count_if(row, [](float x) { return std::isnan(x); }),
                  r == 1 || r == 2 || r == 8 ? outputs : 0)
            << r;
        expected.insert(expected.end(), row.begin(), row.end());
      }
      for (const auto& [rows, live] :
           {std::array{2u, 2u}, std::array{8u, 7u}, std::array{9u, 9u}, std::array{64u, 64u},
            std::array{65u, 65u}, std::array{200u, 200u}, std::array{200u, 67u}}) {
        const std::vector<float> got = run(*kernel, 0, rows, live);
        const size_t count = size_t{live} * outputs;
        EXPECT_EQ(std::memcmp(got.data(), expected.data(), count * sizeof(float)), 0)
            << kernel->name << ' ' << live << " of " << rows << " x " << outputs << " x " << columns;
        EXPECT_EQ(std::ranges::count(std::span(got).subspan(count), -7.0f), got.size() - count);
      }
    }
  }
}

TEST(Fast, RmsNorm) {
  const auto kernels = fast_kernels(rms_norm_schema);
  SKIP_WITHOUT(kernels);
  Random random;
  for (const auto& [rows, vectors, columns] :
       {std::array{1, 1, 8}, std::array{3, 1, 1024}, std::array{2, 1, 1096}, std::array{2, 1, 16384},
        std::array{3, 5, 64}, std::array{2, 4, 128}}) {
    const format::EncodedTensor tensor = random_tensor(format::plain(DType::f32), {columns}, random);
    const PackedWeight weight = pack(tensor.source("w"), vector_f32());
    const Shape shape{rows, vectors, columns};
    const auto count = static_cast<size_t>(shape.elements());
    Array<float> input(count), expected(count, -7), got(count, -7);
    random.fill(input, -3, 3);
    for (const bool weighted : {true, false}) {
      const auto call_of = [&](const Array<float>& output) {
        Call call(rms_norm_schema);
        call.tensor(shape, input);
        weighted ? call.weight(weight) : call.none();
        call.tensor(shape, output);
        call.constants(RmsNormConstants{static_cast<uint32_t>(rows), static_cast<uint32_t>(vectors),
                                        static_cast<uint32_t>(columns), 1e-6f});
        return call;
      };
      call_of(expected).reference(static_cast<uint32_t>(rows));
      for (const backend::Kernel* kernel : kernels) {
        call_of(got).run(*kernel, static_cast<uint32_t>(rows));
        // Squares and their tree within 1,024, the mean, the root and two products; half of the sum's error counts.
        const double bound = (16 + columns / 1024.0 + 6) * kUnitRoundoff;
        EXPECT_LE(excess(got, expected,
                         [&](size_t i) { return bound * std::abs(static_cast<double>(expected[i])); }),
                  0)
            << kernel->name << ' ' << to_string(shape);
      }
    }
  }
}

TEST(Fast, SiluMul) {
  const auto kernels = fast_kernels(silu_mul_schema);
  SKIP_WITHOUT(kernels);
  Random random;
  Array<float> gate(1000), up(1000), expected(1000, -7), got(1000, -7);
  random.fill(gate, -30, 30);
  random.fill(up, -3, 3);
  const auto call_of = [&](const Array<float>& output) {
    Call call(silu_mul_schema);
    call.tensor({2, 500}, gate).tensor({2, 500}, up).tensor({2, 500}, output);
    call.constants(ElementwiseConstants{2, 500});
    return call;
  };
  call_of(expected).reference(2);
  for (const backend::Kernel* kernel : kernels) {
    call_of(got).run(*kernel, 2);
    // CUDA's expf is within 2 units in the last place, 4 roundoffs; then a sum, a quotient and two products.
    EXPECT_LE(
        excess(got, expected,
               [&](size_t i) { return 9 * kUnitRoundoff * std::abs(static_cast<double>(expected[i])); }),
        0)
        << kernel->name;
  }
}

TEST(Fast, EmbeddingIsWhatTheFormatDecodesTo) {
  const auto kernels = fast_kernels(embedding_schema);
  SKIP_WITHOUT(kernels);
  Random random;
  const format::EncodedTensor tensor =
      random_tensor(format::mlx_affine({4, 64}, DType::bf16), {9, 1088}, random);
  const PackedWeight weight = pack(tensor.source("w"), tiles_4x1024());
  Array<uint32_t> rows(4 * 4), status(3);
  const StepRow steps[] = {{8, 0, 0, 0}, {0, 5, 1, 0}, {9, 0, 0, 0}, {3, 0, kIdle, 0}};
  std::memcpy(rows.data(), steps, sizeof(steps));
  Array<float> got(4 * 1088, -7);
  Call call(embedding_schema);
  call.weight(weight).tensor({4, 4}, rows).tensor({3}, status).tensor({4, 1088}, got);
  call.constants(EmbeddingConstants{4, 2, 9, 1088, tensor.format, 1});
  for (const backend::Kernel* kernel : kernels) {
    call.run(*kernel, 4);
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = i / 1088;
      ASSERT_EQ(got[i], row == 0   ? weight.values[8 * 1088 + i]
                        : row == 1 ? weight.values[i - 1088]
                                   : 0.0f)
          << i;
    }
    EXPECT_EQ(status[0], kTokenOutOfRange);
    EXPECT_EQ(status[1] | status[2], 0u);
  }
}

/// Attention of a step's rows over a cache of f16, by a command for all of them or by several.
struct AttentionRows {
  AttentionRows(const std::vector<uint32_t>& lengths, const std::vector<TestStep::Position>& positions,
                const std::array<uint32_t, 3>& shape, uint32_t window_positions)
      : random(5),
        step(lengths, positions, static_cast<uint32_t>(positions.size()), random),
        heads(shape[0]),
        kv_heads(shape[1]),
        head_dim(shape[2]),
        window(window_positions),
        query(step.rows.size() * row_elements()),
        cache(step.cache_elements(kv_heads, head_dim)) {
    random.fill(query, -2, 2);
    for (f16& element : cache) element = f16::from_float(random.uniform(-2, 2));
  }

  uint32_t rows() const { return static_cast<uint32_t>(step.rows.size()); }
  size_t row_elements() const { return size_t{heads} * head_dim; }
  Call call(const Array<float>& output, uint32_t first, uint32_t count) const {
    const Shape shape{count, heads, head_dim};
    Call call(attention_schema);
    call.tensor(DType::f32, shape, query.data() + first * row_elements());
    call.tensor(DType::u32, {count, 4}, step.rows.data() + first);
    call.tensor(step.table_shape(), step.page_table).tensor(step.cache_shape(kv_heads, head_dim), cache);
    call.tensor(step.status_shape(), step.status);
    call.tensor(DType::f32, shape, output.data() + first * row_elements());
    call.constants(AttentionConstants{count, heads, kv_heads, head_dim, step.slots(), step.pages_per_slot,
                                      step.cache_pages, 0.1f, window, DType::f16});
    return call;
  }
  /// The outputs of all rows, by commands of `most` rows each, and what the status words then are.
  Array<float> run(const backend::Kernel& kernel, uint32_t most, std::vector<uint32_t>* status = nullptr) {
    std::fill(step.status.begin(), step.status.end(), 0u);
    Array<float> output(query.size(), -7);
    for (uint32_t first = 0; first < rows(); first += most) {
      const uint32_t count = std::min(most, rows() - first);
      call(output, first, count).run(kernel, count);
    }
    if (status != nullptr) status->assign(step.status.begin(), step.status.end());
    return output;
  }
  /// Keys and values of a slot's positions [begin, end) become `key` and `value`.
  void write(uint32_t slot, uint32_t begin, uint32_t end, f16 key, f16 value) {
    for (uint32_t p = begin; p < end; ++p) {
      for (uint32_t kind = 0; kind < 2; ++kind) {
        for (uint32_t k = 0; k < kv_heads; ++k) {
          const size_t unit =
              CacheGeometry{step.cache_pages, kv_heads, head_dim}.unit_offset(kind, step.page(slot, p), k);
          std::fill_n(cache.data() + unit + size_t{p % kPagePositions} * head_dim, head_dim,
                      kind == 0 ? key : value);
        }
      }
    }
  }
  std::string name() const {
    return std::to_string(heads) + ' ' + std::to_string(kv_heads) + ' ' + std::to_string(head_dim) +
           " window " + std::to_string(window);
  }

  Random random;
  TestStep step;
  uint32_t heads, kv_heads, head_dim, window;
  Array<float> query;
  Array<f16> cache;
};

/// Rows whose bits differ, NaN being like NaN.
std::vector<uint32_t> rows_that_differ(const Array<float>& a, const Array<float>& b, size_t row_elements) {
  std::vector<uint32_t> rows;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool same = std::bit_cast<uint32_t>(a[i]) == std::bit_cast<uint32_t>(b[i]);
    if (same || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const auto row = static_cast<uint32_t>(i / row_elements);
    if (rows.empty() || rows.back() != row) rows.push_back(row);
  }
  return rows;
}

constexpr uint32_t kAttentionWindows[] = {0, 1, 100};
/// heads, key-value heads, size of a head: with 1 to 8 queries a key-value head.
constexpr std::array<uint32_t, 3> kAttentionShapes[] = {{2, 2, 64},  {4, 2, 64}, {8, 2, 128},
                                                        {8, 1, 128}, {6, 2, 64}, {7, 1, 128}};
constexpr uint32_t kFew = 4, kMany = 70;  // rows that a kernel of their own takes

TEST(Fast, Attention) {
  const auto kernels = fast_kernels(attention_schema);
  SKIP_WITHOUT(kernels);
  std::vector<TestStep::Position> positions;
  for (const uint32_t p : {0u, 1u, 7u, 8u, 9u, 63u, 64u, 511u, 512u, 513u, 1299u})
    positions.emplace_back(1, p);
  positions.emplace_back(0, 64);
  positions.resize(kMany, {kIdle, 0});
  size_t accepted = 0;
  for (const auto& shape : kAttentionShapes) {
    for (const uint32_t window : kAttentionWindows) {
      AttentionRows all({65, 1300}, positions, shape, window);
      Array<float> expected(all.query.size(), -7);
      all.call(expected, 0, all.rows()).reference(all.rows());
      for (const backend::Kernel* kernel : kernels) {
        if (!all.call(expected, 0, all.rows()).accepted_by(*kernel)) continue;
        ++accepted;
        // Scores of at most 0.1 * 4 D are off by (D + 6) roundoffs of that and 8 of the query's, weights by twice as much;
        // then sums of 1,300.
        const double score = 0.1 * 4 * all.head_dim * (all.head_dim + 14.0);
        for (const uint32_t most : {all.rows(), kFew}) {
          const Array<float> got = all.run(*kernel, most);
          EXPECT_LE(excess(got, expected, [&](size_t) { return 2 * (2 * score + 200) * kUnitRoundoff; }), 0)
              << kernel->name << ' ' << all.name() << ", commands of " << most;
          for (const uint32_t word : all.step.status) EXPECT_EQ(word, 0u);
        }
      }
    }
  }
  EXPECT_EQ(accepted, 18u) << "one for each shape and window";
}

TEST(Fast, AttentionWithACapIsLeftToTheExactKernels) {
  const auto kernels = fast_kernels(attention_schema);
  SKIP_WITHOUT(kernels);
  for (const auto& shape : kAttentionShapes) {
    const AttentionRows all({65, 1300}, {{0, 64}}, shape, 0);
    const Array<float> output(all.query.size());
    Call call = all.call(output, 0, 1);
    AttentionConstants constants = call.op_call().constants_as<AttentionConstants>();
    constants.softcap = 50;
    call.constants(constants);
    for (const backend::Kernel* kernel : kernels) EXPECT_FALSE(call.accepted_by(*kernel)) << kernel->name;
  }
}

// Runs of positions over the edges of chunks, pages and strands, runs of one row, rows of one slot that are far apart, idle
// rows and refused ones, some of them within a run: in groups that are full and in one that is not.
TEST(Fast, AttentionOfManyRowsHasTheBitsOfFew) {
  const auto kernels = fast_kernels(attention_schema);
  SKIP_WITHOUT(kernels);
  std::vector<TestStep::Position> positions;
  const auto run = [&](uint32_t slot, uint32_t begin, uint32_t end) {
    for (uint32_t p = begin; p < end; ++p) positions.emplace_back(slot, p);
  };
  run(0, 1000, 1045);
  positions.emplace_back(kIdle, 0);
  run(1, 57, 67);
  for (const auto& [slot, position] : std::initializer_list<TestStep::Position>{{2, 199},
                                                                                {3, 0},
                                                                                {2, 5},
                                                                                {1, 1099},
                                                                                {3, 64},
                                                                                {4, 0},
                                                                                {0, 2304},
                                                                                {3, 190},
                                                                                {0, 2100},
                                                                                {0, 2101},
                                                                                {1, 1050},
                                                                                {2, 70}})
    positions.emplace_back(slot, position);
  run(0, 2270, 2304);
  run(3, 120, 136);  // page 2 of which there is none
  run(1, 0, 70);
  for (const uint32_t p : {7u, 2299u, 300u, 301u, 1023u}) positions.emplace_back(0, p);
  for (uint32_t slot = 0; slot < 4; ++slot) positions.emplace_back(slot, 60);
  size_t accepted = 0;
  std::vector<std::array<uint32_t, 3>> shapes(std::begin(kAttentionShapes), std::end(kAttentionShapes));
  shapes.push_back({16, 16, 64});  // groups of many rows of one query
  shapes.push_back({40, 8, 64});
  for (const auto& shape : shapes) {
    for (const uint32_t window : kAttentionWindows) {
      AttentionRows all({2304, 1100, 200, 65}, positions, shape, window);
      for (const backend::Kernel* kernel : kernels) {
        if (!all.call(all.query, 0, all.rows()).accepted_by(*kernel)) continue;
        ++accepted;
        std::vector<uint32_t> few_status, status;
        const Array<float> few = all.run(*kernel, kFew, &few_status);
        const std::vector<uint32_t> none;
        EXPECT_EQ(rows_that_differ(all.run(*kernel, all.rows(), &status), few, all.row_elements()), none)
            << kernel->name << ' ' << all.name();
        EXPECT_EQ(status, few_status) << all.name();
        EXPECT_EQ(rows_that_differ(all.run(*kernel, kMany), few, all.row_elements()), none)
            << kernel->name << ' ' << all.name() << ", commands of " << kMany;
        // Rows behind the live ones stay as they were.
        Array<float> part(few.size(), -7);
        const uint32_t live = all.rows() - 9;
        all.call(part, 0, all.rows()).run(*kernel, live);
        const std::vector<uint32_t> dead = rows_that_differ(part, few, all.row_elements());
        EXPECT_EQ(dead.size(), 9u) << all.name();
        EXPECT_TRUE(std::all_of(part.begin() + static_cast<ptrdiff_t>(live * all.row_elements()), part.end(),
                                [](float x) { return x == -7.0f; }));
      }
    }
  }
  EXPECT_EQ(accepted, 24u) << "one for each shape and window";
}

// What lies behind a row's position, or before its window, does not reach it, not even through rows that look at it: zero
// by infinity is not zero.
TEST(Fast, AttentionLooksAtItsPositionsAlone) {
  const auto kernels = fast_kernels(attention_schema);
  SKIP_WITHOUT(kernels);
  constexpr uint32_t kBegin = 970, kEnd = kBegin + kMany;
  std::vector<TestStep::Position> positions;
  for (uint32_t p = kBegin; p < kEnd; ++p) positions.emplace_back(0, p);
  const f16 infinity{0x7C00}, nan{0x7E00}, zero{0};
  for (const auto& shape : kAttentionShapes) {
    for (const uint32_t window : kAttentionWindows) {
      // Behind a position within a chunk, and behind all but the last of one.
      for (const auto& [spoilt_at, behind] :
           {std::pair{1019u, true}, std::pair{1023u, true}, std::pair{1019u, false}}) {
        if (!behind && window == 0) continue;
        AttentionRows all({1100}, positions, shape, window);
        const Array<float> clean(all.query.size());
        const std::pair<f16, f16> kinds[] = {{nan, nan}, {zero, infinity}, {infinity, zero}};
        for (const backend::Kernel* kernel : kernels) {
          if (!all.call(clean, 0, all.rows()).accepted_by(*kernel)) continue;
          const Array<float> expected = all.run(*kernel, all.rows());
          for (const auto& [key, value] : kinds) {
            AttentionRows spoilt({1100}, positions, shape, window);
            behind ? spoilt.write(0, spoilt_at, 1100, key, value)
                   : spoilt.write(0, 0, spoilt_at - window + 1, key, value);
            for (const uint32_t most : {all.rows(), kFew}) {
              const Array<float> got = spoilt.run(*kernel, most);
              for (const uint32_t row : rows_that_differ(got, expected, all.row_elements())) {
                const uint32_t position = kBegin + row;
                EXPECT_TRUE(behind ? position >= spoilt_at : position < spoilt_at)
                    << kernel->name << ' ' << all.name() << ", commands of " << most << ", position "
                    << position;
              }
              // It reaches those that do look at it.
              const size_t looks = (behind ? spoilt_at : spoilt_at - 1) - kBegin;
              EXPECT_NE(got[looks * all.row_elements()], expected[looks * all.row_elements()]);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace refrain::ops

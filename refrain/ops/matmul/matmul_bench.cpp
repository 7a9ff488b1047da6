// matmul: speed by format and size. For one row, weights rotate among copies that exceed the last-level cache, so that they
// stream from memory.
#include "refrain/ops/matmul/matmul.h"

#include "refrain/ops/benching.h"

namespace refrain::ops {
namespace {

using namespace harness;

struct Arrays {
  std::vector<PackedWeight> weights;
  Array<float> input{0}, output{0};
};

BenchCalls make(const WeightFormat& format, uint32_t rows, int64_t outputs, int64_t columns) {
  constexpr size_t kStreamedBytes = size_t{192} << 20;
  Random random;
  const auto arrays = std::make_shared<Arrays>();
  arrays->weights = {random_weight(format, outputs, columns, random)};
  if (rows == 1) {
    const PackedWeight weight = arrays->weights.front();
    arrays->weights.resize(kStreamedBytes / weight.bytes.size() + 1, weight);
  }
  arrays->input = Array<float>(rows * static_cast<size_t>(columns));
  arrays->output = Array<float>(rows * static_cast<size_t>(outputs));
  random.fill(arrays->input);
  BenchCalls made{arrays, {}};
  for (const PackedWeight& weight : arrays->weights) {
    Call& call = made.calls.emplace_back(matmul_schema);
    call.tensor({rows, columns}, arrays->input).weight(weight).tensor({rows, outputs}, arrays->output);
    call.constants(
        MatmulConstants{rows, static_cast<uint32_t>(outputs), static_cast<uint32_t>(columns), &format});
  }
  return made;
}

const bool kAdded = [] {
  std::vector<const WeightFormat*> formats = {&format::plain(DType::bf16), &format::plain(DType::f32),
                                              &format::q8_0(), &format::q4_0()};
  for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u})
    formats.push_back(&format::mlx_affine({bits, 64}, DType::bf16));
  for (const WeightFormat* format : formats) {
    for (const auto& [rows, n, k] : {std::array{1u, 2048u, 2048u},
                                     {1u, 1024u, 3072u},
                                     {8u, 2048u, 2048u},
                                     {64u, 2048u, 2048u},
                                     {64u, 1024u, 3072u}}) {
      const std::string label = std::string(format->name) + "/" + std::to_string(rows) + "x" +
                                std::to_string(n) + "x" + std::to_string(k);
      add_benchmarks(matmul_schema, label, rows, [=] { return make(*format, rows, n, k); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace refrain::ops

// Speed of the CPU kernels of matmul on one thread. For one row, weights rotate among
// copies that exceed the last-level cache, so that GB/s is the rate at which they stream from memory.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

struct Size {
  uint32_t rows;
  int64_t outputs;
  int64_t columns;
};

Call call_of(const Size& size, const Array<float>& input, const PackedWeight& weight,
             const Array<float>& output) {
  Call call(matmul_schema);
  call.tensor({size.rows, size.columns}, input).weight(weight).tensor({size.rows, size.outputs}, output);
  call.constants(MatmulConstants{size.rows, static_cast<uint32_t>(size.outputs),
                                 static_cast<uint32_t>(size.columns), weight.info.format});
  return call;
}

void product(benchmark::State& state, const backend::Kernel& kernel, const WeightFormat& format,
             const Size& size) {
  constexpr size_t kStreamedBytes = size_t{192} << 20;
  Random random;
  const PackedWeight weight = random_weight(format, size.outputs, size.columns, random);
  const std::vector<PackedWeight> weights(size.rows == 1 ? kStreamedBytes / weight.bytes.size() + 1 : 1,
                                          weight);
  Array<float> input(size.rows * static_cast<size_t>(size.columns));
  Array<float> output(size.rows * static_cast<size_t>(size.outputs));
  random.fill(input);
  std::vector<Call> calls;
  for (const PackedWeight& copy : weights) calls.push_back(call_of(size, input, copy, output));
  size_t next = 0;
  for (auto _ : state) {
    calls[next].run(kernel, size.rows);
    next = (next + 1) % calls.size();
  }
  const auto iterations = static_cast<double>(state.iterations());
  const double flops =
      2.0 * size.rows * static_cast<double>(size.outputs) * static_cast<double>(size.columns);
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(weight.bytes.size()) * iterations / 1e9,
                                              benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * iterations / 1e9, benchmark::Counter::kIsRate);
}

void add_benchmarks() {
  std::vector<const backend::Kernel*> kernels;
#if defined(__x86_64__)
  append_runnable(kernels, matmul_cpu_avx2_kernels());
#endif
  append_runnable(kernels, matmul_cpu_kernels());
  std::vector<const WeightFormat*> formats = {&format::plain(DType::bf16), &format::plain(DType::f32),
                                              &format::q8_0(), &format::q4_0()};
  for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u})
    formats.push_back(&format::mlx_affine({bits, 64}, DType::bf16));
  const Size sizes[] = {
      {1, 2048, 2048}, {1, 1024, 3072}, {8, 2048, 2048}, {64, 2048, 2048}, {64, 1024, 3072}};
  for (const backend::Kernel* kernel : kernels) {
    for (const WeightFormat* format : formats) {
      for (const Size& size : sizes) {
        const std::string name = std::string(kernel->name) + "/" + std::string(format->name) + "/" +
                                 std::to_string(size.rows) + "x" + std::to_string(size.outputs) + "x" +
                                 std::to_string(size.columns);
        benchmark::RegisterBenchmark(name.c_str(), product, *kernel, *format, size)
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace refrain::ops

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  refrain::ops::add_benchmarks();
  benchmark::RunSpecifiedBenchmarks();
}

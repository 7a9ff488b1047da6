// Speed of the CPU kernels of matmul and quantized_matmul on one thread. For one row, weights rotate among
// copies that exceed the last-level cache, so that GB/s is the rate at which they stream from memory.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/quantized_matmul/quantized_matmul.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

struct Format {
  std::string name;
  DType dtype;
  uint32_t bits;  ///< 0: plain
  uint32_t group_size;
};

struct Size {
  uint32_t rows;
  int64_t outputs;
  int64_t columns;
};

Call call_of(const Format& format, const Size& size, const Array<float>& input, const PackedWeight& weight,
             const Array<float>& output) {
  const auto n = static_cast<uint32_t>(size.outputs), k = static_cast<uint32_t>(size.columns);
  const auto dtype = static_cast<uint32_t>(format.dtype);
  Call call(format.bits == 0 ? matmul_schema : quantized_matmul_schema);
  call.tensor({size.rows, size.columns}, input).weight(weight).tensor({size.rows, size.outputs}, output);
  if (format.bits == 0) {
    call.constants(MatmulConstants{size.rows, n, k, dtype});
  } else {
    call.constants(QuantizedMatmulConstants{size.rows, n, k, format.bits, format.group_size, dtype});
  }
  return call;
}

void product(benchmark::State& state, const backend::Kernel& kernel, const Format& format, const Size& size) {
  constexpr size_t kStreamedBytes = size_t{192} << 20;
  Random random;
  const PackedWeight weight =
      format.bits == 0 ? random_plain_weight(format.dtype, {size.outputs, size.columns}, rows(), random)
                       : random_affine_weight(format.dtype, size.outputs, size.columns, format.bits,
                                              format.group_size, random);
  const std::vector<PackedWeight> weights(size.rows == 1 ? kStreamedBytes / weight.bytes.size() + 1 : 1,
                                          weight);
  Array<float> input(size.rows * static_cast<size_t>(size.columns));
  Array<float> output(size.rows * static_cast<size_t>(size.outputs));
  random.fill(input);
  std::vector<Call> calls;
  for (const PackedWeight& copy : weights) calls.push_back(call_of(format, size, input, copy, output));
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
  append_runnable(kernels, quantized_matmul_cpu_avx2_kernels());
#endif
  append_runnable(kernels, matmul_cpu_kernels());
  append_runnable(kernels, quantized_matmul_cpu_kernels());
  const Format formats[] = {{"bf16", DType::bf16, 0, 0},
                            {"f32", DType::f32, 0, 0},
                            {"affine4/64", DType::bf16, 4, 64},
                            {"affine8/64", DType::bf16, 8, 64}};
  const Size sizes[] = {
      {1, 2048, 2048}, {1, 1024, 3072}, {8, 2048, 2048}, {64, 2048, 2048}, {64, 1024, 3072}};
  for (const backend::Kernel* kernel : kernels) {
    for (const Format& format : formats) {
      Random random;
      const PackedWeight probe =
          format.bits == 0
              ? random_plain_weight(format.dtype, {1, 128}, rows(), random)
              : random_affine_weight(format.dtype, 1, 128, format.bits, format.group_size, random);
      const bool quantized = kernel->op == &quantized_matmul_schema;
      if (quantized != (format.bits != 0)) continue;
      Array<float> input(128), output(1);
      if (!call_of(format, {1, 1, 128}, input, probe, output).accepted_by(*kernel)) continue;
      for (const Size& size : sizes) {
        const std::string name = std::string(kernel->name) + "/" + format.name + "/" +
                                 std::to_string(size.rows) + "x" + std::to_string(size.outputs) + "x" +
                                 std::to_string(size.columns);
        benchmark::RegisterBenchmark(name.c_str(), product, *kernel, format, size)
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

// What the benchmarks of ops share: every kernel of an op that the host can run, on calls that take turns. They lie beside
// their op as NAME_bench.cpp and register themselves. Only for benchmarks.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "refrain/ops/testing.h"

namespace refrain::ops::harness {

/// Calls of one shape. Several, where their arguments are to come from memory and not from a cache.
struct BenchCalls {
  std::shared_ptr<void> arrays;  ///< what the calls are bound to
  std::vector<Call> calls;
};

/// Registers KERNEL/`label` for each kernel of `op`; `make` is called when one runs, which reports the op's cost as GB/s
/// and GFLOP/s on one thread. True, so that it may initialise a variable.
inline bool add_benchmarks(const backend::OpSchema& op, const std::string& label, uint32_t rows,
                           const std::function<BenchCalls()>& make) {
  for (const backend::Kernel* kernel : kernels_of(op)) {
    const auto run = [=, &op](benchmark::State& state) {
      const BenchCalls made = make();
      size_t next = 0;
      for (auto _ : state) {
        made.calls[next].run(*kernel, rows);
        next = (next + 1) % made.calls.size();
      }
      const backend::Cost cost = op.cost(made.calls.front().op_call());
      const auto rate = [&](uint64_t amount) {
        return benchmark::Counter(static_cast<double>(amount) * static_cast<double>(state.iterations()) / 1e9,
                                  benchmark::Counter::kIsRate);
      };
      state.counters["GB/s"] = rate(cost.bytes);
      state.counters["GFLOP/s"] = rate(cost.flops);
    };
    benchmark::RegisterBenchmark((std::string(kernel->name) + "/" + label).c_str(), run)
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}

}  // namespace refrain::ops::harness

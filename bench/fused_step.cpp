// Time of a step of a model, fused and not: 1, 64 and 512 rows, one thread and two, taken in turn, the other
// one first every other time. CPU time of all threads stands beside, for machines that others use as well; its
// clock may move in jumps longer than a step, so it is read around several steps and has no least.
//
//   bench_fused_step [MODEL] [THREADS...]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "refrain/model/model_runner.h"
#include "refrain/refrain.h"

namespace {

using namespace refrain;
using model::ModelRunner;

// A turn takes as many steps as fill this time, so that jumps of the CPU clock, up to 10 ms, are a part of it.
constexpr double kTurnUs = 50000;

double cpu_us() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

double step_us(ModelRunner& runner, uint32_t rows, uint32_t position) {
  const model::StepRequest request{.slot = 0, .rows = rows, .position = position};
  std::vector<uint32_t> tokens;
  for (uint32_t r = 0; r < rows; ++r) tokens.push_back(5 + r);
  const uint32_t output = rows - 1;
  const auto begin = std::chrono::steady_clock::now();
  runner.submit({{&request, 1}, tokens, {&output, 1}});
  runner.wait();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> list) {
  std::ranges::nth_element(list, list.begin() + static_cast<std::ptrdiff_t>(list.size() / 2));
  return list[list.size() / 2];
}

double median_ratio(const std::vector<double> (&us)[2]) {
  std::vector<double> ratios;
  for (size_t i = 0; i < us[0].size(); ++i) ratios.push_back(us[1][i] / us[0][i]);
  return median(std::move(ratios));
}

/// Medians, and the median of the ratios of each pair.
void print(const std::vector<double> (&wall)[2], const std::vector<double> (&cpu)[2]) {
  std::printf("  wall plain %9.1f us (least %9.1f)  fused %9.1f us (least %9.1f)  ratio %.3f\n",
              median(wall[0]), std::ranges::min(wall[0]), median(wall[1]), std::ranges::min(wall[1]),
              median_ratio(wall));
  std::printf("  cpu  plain %9.1f us %19sfused %9.1f us %19sratio %.3f\n", median(cpu[0]), "", median(cpu[1]),
              "", median_ratio(cpu));
}

}  // namespace

int main(int count, char** arguments) {
  const std::string folder = count > 1 ? arguments[1] : "models/tales-qwen3-4bit";
  std::vector<uint32_t> threads;
  for (int i = 2; i < count; ++i) threads.push_back(static_cast<uint32_t>(std::atoi(arguments[i])));
  if (threads.empty()) threads = {1, 2};
  for (const uint32_t workers : threads) {
    DeviceOptions options;
    options.threads = workers;
    options.validate = false;
    const model::Model model = model::Model::load(Device::open("cpu", options), folder);
    std::unique_ptr<ModelRunner> families[2];
    for (const bool fuse : {false, true}) {
      model::RunnerOptions runner;
      runner.context_tokens = 1024;
      runner.capacities = {1, 64, 512};
      runner.plan.fuse = fuse;
      runner.plan.most_fused_rows = UINT32_MAX;  // also of so many rows that a CPU leaves commands apart
      families[fuse] = std::make_unique<ModelRunner>(model, runner);
      families[fuse]->set_slot(0, {.length = 64});
    }
    const PlanReport& report = families[1]->report(0);
    std::printf("%u threads: %zu commands in %zu levels recorded, %zu in %zu fused\n", workers,
                report.recorded_commands, report.recorded_levels, report.commands, report.fused_levels);
    for (const uint32_t rows : {1u, 64u, 512u}) {
      for (const auto& runner : families) step_us(*runner, rows, 64);  // the first touches memory
      const int steps = std::max(1, static_cast<int>(kTurnUs / step_us(*families[0], rows, 64)));
      // In turn, so that both meet the same neighbours on the machine.
      std::vector<double> wall[2], cpu[2];
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(6);
      for (int round = 0; round < 21 || std::chrono::steady_clock::now() < end; ++round) {
        for (const int turn : {0, 1}) {
          const int fuse = turn ^ (round & 1);
          const double begin_us = cpu_us();
          for (int step = 0; step < steps; ++step) wall[fuse].push_back(step_us(*families[fuse], rows, 64));
          cpu[fuse].push_back((cpu_us() - begin_us) / steps);
        }
      }
      std::printf(" R = %u, %d steps a turn\n", rows, steps);
      print(wall, cpu);
    }
  }
}

// What the library costs beside the work: recording, replay, submission, a line `name value unit` for each.
// Replays stand side by side with oneTBB's flow graph and OpenMP tasks on the same graphs, in turns; the
// hazard pass has a program of its own (bench/hazards.cpp).
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "bench/dispatch/recording.h"
#include "bench/dispatch/report.h"
#include "bench/dispatch/runner.h"
#include "refrain/backend/cpu/machine.h"

namespace {

using namespace refrain::bench;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 15;
constexpr uint32_t kReplays = 40;

void print_machine() {
  std::string load;
  std::getline(std::ifstream("/proc/loadavg"), load);
  std::printf("# %s, %zu CPUs; load average %s\n", refrain::backend::cpu::model_name("").c_str(),
              refrain::backend::cpu::affinity_cpus().size(), load.c_str());
}

/// Medians over rounds in which each runner has its turn. False when one has lost or doubled a command.
bool measure_replay(const TaskGraph& graph, uint32_t threads) {
  std::vector<std::unique_ptr<Runner>> runners;
  for (auto make : {make_refrain_runner, make_tbb_runner, make_openmp_runner}) {
    if (auto runner = make(graph, threads)) runners.push_back(std::move(runner));
  }
  std::vector<std::vector<double>> times(runners.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t r = 0; r < runners.size(); ++r) {
      // The workers of the others go to sleep, one's own wake up.
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      runners[r]->replay(kReplays / 4);
      const auto begin = Clock::now();
      runners[r]->replay(kReplays);
      const std::chrono::duration<double, std::nano> time = Clock::now() - begin;
      times[r].push_back(time.count() / kReplays / static_cast<double>(graph.deps.size()));
    }
  }
  bool right = true;
  for (size_t r = 0; r < runners.size(); ++r) {
    const std::string suffix = threads_suffix(threads).append("/");
    print("replay/" + graph.name + suffix + runners[r]->name, median(times[r]), "ns/command");
    for (const Cell& cell : runners[r]->cells)
      right = right && cell.value == kRounds * (kReplays + kReplays / 4);
  }
  if (!right) std::printf("# %s: a command did not run as often as it should\n", graph.name.c_str());
  return right;
}

}  // namespace

int main() {
  print_machine();
  measure_recording();
  measure_commit();
  measure_null_replay();
  measure_submission();

  bool right = true;
  const TaskGraph graphs[] = {chain(), width_8(), qwen3_28_layers(), random_graph()};
  if (make_tbb_runner(graphs[0], 1) == nullptr)
    std::printf("# oneTBB was not found: no figures of its flow graph\n");
  if (make_openmp_runner(graphs[0], 1) == nullptr) std::printf("# no OpenMP: no figures of its tasks\n");
  for (const TaskGraph& graph : graphs) {
    size_t edges = 0;
    for (const auto& deps : graph.deps) edges += deps.size();
    std::printf("# %s: %zu commands, %zu edges\n", graph.name.c_str(), graph.deps.size(), edges);
    for (const uint32_t threads : {1u, 2u}) right = measure_replay(graph, threads) && right;
  }

  std::printf(
      "# as published by the authors of mlx-native, measured by them on another machine (Apple M5 Max)\n");
  print("published/mlx_native/dispatch", 160, "ns");
  print("published/mlx_native/command_buffer", 1600, "ns");
  print("published/mlx_native/barrier", 300, "ns");
  print_machine();
  return right ? EXIT_SUCCESS : EXIT_FAILURE;
}

// What a command costs on the CPU device apart from its work: replays of 1,000 commands that do next to
// nothing.
//
// Usage: bench_dispatch_cpu [threads...]. Prints nanoseconds, the best and the median of several rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "refrain/device/cpu/cpu_device.h"

namespace {

using namespace refrain::device;

constexpr uint32_t kCommands = 1000;

void touch(const TileArgs& args, uint32_t, uint32_t) { ++*args.arg<uint32_t>(0); }

constexpr ArgumentSpec kArgs[] = {{"data", Access::inout, false, false}};
constexpr TileKernel kTiles{nullptr, nullptr, touch};

struct Case {
  const char* name;
  std::vector<std::vector<uint32_t>> deps;
};

Case chain() {
  Case result{"chain", std::vector<std::vector<uint32_t>>(kCommands)};
  for (uint32_t i = 1; i < kCommands; ++i) result.deps[i] = {i - 1};
  return result;
}

// Layers of eight; each command waits for its own predecessor and a neighbour's.
Case wide() {
  Case result{"width 8", std::vector<std::vector<uint32_t>>(kCommands)};
  for (uint32_t i = 8; i < kCommands; ++i) result.deps[i] = {i - 8, i - 8 + (i % 8 == 7 ? -7u : 1u)};
  return result;
}

Case random_order() {
  Case result{"random", std::vector<std::vector<uint32_t>>(kCommands)};
  std::mt19937 random(1);
  for (uint32_t i = 1; i < kCommands; ++i) {
    for (uint32_t k = 0; k < 2; ++k)
      result.deps[i].push_back(i - 1 - static_cast<uint32_t>(random() % std::min(i, 16u)));
  }
  return result;
}

Plan make_plan(const Case& shape, const Kernel& kernel, const Allocation* memory) {
  Plan plan;
  for (uint32_t i = 0; i < kCommands; ++i) {
    Command command;
    command.kernel = &kernel;
    command.args = {i, 1};
    plan.args.push_back(
        {{memory, i * 64, 4}, Access::inout, false});  // a line each: no false sharing in the work
    command.deps = {static_cast<uint32_t>(plan.deps.size()), static_cast<uint32_t>(shape.deps[i].size())};
    for (const uint32_t dep : shape.deps[i]) {
      plan.deps.push_back(dep);
      command.level = std::max(command.level, plan.commands[dep].level + 1);
    }
    plan.commands.push_back(command);
  }
  plan.labels = {"touch"};
  return plan;
}

struct Time {
  double best = 0;
  double median = 0;
};

// Nanoseconds of one replay, submitted and waited for, or submitted ahead; divided by `commands`.
Time measure(Backend& device, const Program& program, bool ahead, uint32_t commands) {
  constexpr int kRounds = 21, kReplays = 200;
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    Point point;
    for (int i = 0; i < kReplays; ++i) {
      point = device.submit({&program, {}, {}});
      if (!ahead) device.wait(point, std::chrono::seconds(60));
    }
    device.wait(point, std::chrono::seconds(60));
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    times.push_back(time.count() / kReplays / commands);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

void report(Backend& device, const char* name, const Program& program, uint32_t commands) {
  const Time waited = measure(device, program, false, commands);
  const Time ahead = measure(device, program, true, commands);
  std::printf("  %-10s %10.1f %10.1f   %10.1f %10.1f\n", name, waited.best, waited.median, ahead.best,
              ahead.median);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<uint32_t> threads;
  for (int i = 1; i < argc; ++i) threads.push_back(static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)));
  if (threads.empty()) threads = {1, 2};
  OpSchema op;
  op.name = "touch";
  op.args = kArgs;
  Kernel kernel;
  kernel.name = "touch";
  kernel.op = &op;
  kernel.entry = &kTiles;
  for (const uint32_t count : threads) {
    CpuOptions options;
    options.threads = count;
    const auto device = make_cpu(options, {&kernel, 1});
    std::printf("%s\n", device->info.name.c_str());
    const Allocation* memory = device->allocate({kCommands * 64, nullptr, "work"});
    std::printf("  %-10s %21s   %21s\n", "ns", "waited for, median", "ahead, median");
    report(*device, "submission", *device->prepare({}, {}), 1);
    for (const Case& shape : {chain(), wide(), random_order()}) {
      const Plan plan = make_plan(shape, kernel, memory);
      report(*device, shape.name, *device->prepare(plan, {}), kCommands);
    }
  }
  return 0;
}

// Replays on the CPU device: a program that is submitted again and again, each submission behind the last.
#include <algorithm>
#include <chrono>

#include "bench/dispatch/runner.h"
#include "refrain/backend/cpu/cpu_backend.h"

namespace refrain::bench {
namespace {

void touch(const backend::TileArgs& args, uint32_t, uint32_t) { ++args.arg<Cell>(0)->value; }

constexpr backend::ArgumentSpec kArgs[] = {{"cell", backend::Access::inout}};
constexpr backend::TileKernel kTiles{.tiles = touch};

class RefrainRunner final : public Runner {
 public:
  RefrainRunner(const TaskGraph& graph, uint32_t threads) {
    name = "refrain";
    cells.resize(graph.deps.size());
    op_.name = "touch";
    op_.args = kArgs;
    kernel_.name = "touch";
    kernel_.op = &op_;
    kernel_.entry = &kTiles;
    backend::CpuOptions options;
    options.threads = threads;
    device_ = backend::make_cpu(options, std::span(&kernel_, 1));
    const backend::Allocation* memory = device_->allocate(
        {cells.size() * sizeof(Cell), "cells", backend::MemoryKind::import_host, cells.data()});
    for (uint32_t i = 0; i < graph.deps.size(); ++i) {
      backend::PlanCommand command;
      command.kernel = &kernel_;
      command.args = {i, 1};
      plan_.args.push_back({{memory, i * sizeof(Cell), sizeof(Cell)}, backend::Access::inout, false});
      const std::vector<uint32_t>& deps = graph.deps[i];
      command.deps = {static_cast<uint32_t>(plan_.deps.size()), static_cast<uint32_t>(deps.size())};
      plan_.deps.insert(plan_.deps.end(), deps.begin(), deps.end());
      command.level = 1;
      for (const uint32_t dep : deps) command.level = std::max(command.level, plan_.commands[dep].level + 1);
      plan_.commands.push_back(command);
    }
    plan_.labels = {""};
    program_ = device_->prepare(plan_, {});
  }

  void replay(uint32_t times) override {
    backend::Point last;
    for (uint32_t i = 0; i < times; ++i) last = device_->submit({program_.get(), {}, {}});
    device_->wait(last, std::chrono::hours(1));
  }

 private:
  backend::OpSchema op_;
  backend::Kernel kernel_;
  backend::PlanData plan_;
  std::unique_ptr<backend::Backend> device_;
  std::unique_ptr<backend::Executable> program_;
};

}  // namespace

std::unique_ptr<Runner> make_refrain_runner(const TaskGraph& graph, uint32_t threads) {
  return std::make_unique<RefrainRunner>(graph, threads);
}

}  // namespace refrain::bench

// Time of a step of a model, fused and not: one row and 64 rows, one thread and two, taken in turn.
//
//   bench_fused_step [MODEL] [THREADS...]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "refrain/model/program_family.h"
#include "refrain/refrain.h"

namespace {

using namespace refrain;
using model::ProgramFamily;
using model::StepRow;

double step_us(ProgramFamily& family, uint32_t rows, uint32_t position) {
  std::vector<StepRow> batch;
  std::vector<uint32_t> outputs;
  for (uint32_t r = 0; r < rows; ++r) batch.push_back({5 + r, position + r, 0, 0});
  outputs.push_back(rows - 1);
  const model::StepSequence sequence = family.sequence(0, position + rows);
  const auto begin = std::chrono::steady_clock::now();
  family.submit({batch, std::span(&sequence, 1), outputs});
  family.wait();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
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
    std::unique_ptr<ProgramFamily> families[2];
    for (const bool fuse : {false, true}) {
      model::FamilyOptions family;
      family.context_tokens = 256;
      family.plan.fuse = fuse;
      families[fuse] = std::make_unique<ProgramFamily>(model, family);
    }
    const PlanReport& report = families[1]->report(0);
    std::printf("%u threads: %zu commands in %zu levels recorded, %zu in %zu fused\n", workers,
                report.recorded_commands, report.recorded_levels, report.commands, report.fused_levels);
    for (const uint32_t rows : {1u, 64u}) {
      // In turn, so that both meet the same neighbours on the machine.
      std::vector<double> us[2];
      for (int round = 0; round < (rows == 1 ? 400 : 60); ++round) {
        for (const bool fuse : {false, true}) us[fuse].push_back(step_us(*families[fuse], rows, 64));
      }
      for (auto& list : us) std::ranges::sort(list);
      const auto median = [](const std::vector<double>& list) { return list[list.size() / 2]; };
      std::printf("  R = %-3u plain %9.1f us (least %9.1f)   fused %9.1f us (least %9.1f)   ratio %.3f\n",
                  rows, median(us[0]), us[0][0], median(us[1]), us[1][0], median(us[1]) / median(us[0]));
    }
  }
}

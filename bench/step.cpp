// What the host does for a decode step of 512 slots: the bytes that it sends, and the time that it takes to encode
// them and to submit them, to a device that counts and does nothing. Medians of 1,000; a line `name value unit` each.
//
//   bench_step [MODEL]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "refrain/backend/null/null_backend.h"
#include "refrain/model/model_runner.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/refrain.h"

namespace {

using namespace refrain;

template <class Run>
void measure(const char* name, Run run) {
  std::vector<double> us;
  for (int i = 0; i < 1000; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(us);
  std::printf("%s %.2f us\n", name, us[us.size() / 2]);
}

}  // namespace

int main(int count, char** arguments) {
  constexpr uint32_t kSlots = 512;
  const Device device(backend::make_null(ops::null_kernels()), ops::cpu_layouts(), {});
  const model::Model model = model::Model::load(device, count > 1 ? arguments[1] : "models/tales-qwen3-4bit");
  model::RunnerOptions options;
  options.context_tokens = 64;
  options.slots = kSlots;
  options.capacities = {kSlots};
  model::ModelRunner runner(model, options);

  std::vector<model::StepRequest> requests;
  std::vector<uint32_t> outputs;
  for (uint32_t s = 0; s < kSlots; ++s) {
    requests.push_back({.slot = s, .rows = 1});
    outputs.push_back(s);
  }
  const std::vector<uint32_t> tokens(kSlots, ops::kLastToken);
  const model::Batch batch{requests, tokens, outputs};
  runner.submit(batch);
  std::printf("step_512_slots_sent %zu bytes\n", runner.sent_bytes());

  model::StepImage image(runner.step(0).layout, kSlots);
  measure("step_512_slots_encode", [&] { runner.step(0).encode(batch, image); });
  measure("step_512_slots_submit", [&] { runner.submit(batch); });
  measure("step_512_slots_submit_next", [&] { runner.submit_next(); });
}

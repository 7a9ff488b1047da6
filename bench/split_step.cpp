// Time of a decode step with attention whole and in parts, at the beginning and far into a long context: models of a few
// layers with random weights, differing in key-value heads. Taken in turn, the other one first every other time.
//
//   bench_split_step [WORKERS [SPLITS]]      SPLITS: PlanOptions::splits; 0, the device's choice, if left out
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "refrain/format/json.h"
#include "refrain/model/model_runner.h"
#include "refrain/model/random_weights.h"
#include "refrain/refrain.h"

namespace {

using namespace refrain;
using model::ModelRunner;

constexpr uint32_t kContext = 8448;

struct ShapeOf {
  uint32_t hidden, heads, kv_heads, head_dim, intermediate;
};
// A small one, where commands cost most; as smollm2 (3 key-value heads), gemma (1) and qwen3 (8) have it.
constexpr ShapeOf kShapes[] = {
    {256, 4, 1, 64, 768}, {576, 9, 3, 64, 1536}, {1152, 4, 1, 256, 6912}, {1024, 16, 8, 128, 3072}};

std::string config_of(const ShapeOf& s) {
  return fmt::format(
      R"({{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {}, "num_hidden_layers": 4,
"num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {}, "intermediate_size": {}, "vocab_size": 2048,
"tie_word_embeddings": true, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": {},
"rope_theta": 500000.0, "attention_bias": false}})",
      s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate, kContext);
}

double step_us(ModelRunner& runner, uint32_t depth) {
  const model::StepRequest request{.slot = 0, .rows = 1, .position = depth};
  const uint32_t token = 5, output = 0;
  const auto begin = std::chrono::steady_clock::now();
  runner.submit({{&request, 1}, {&token, 1}, {&output, 1}});
  runner.wait();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> list) {
  std::ranges::nth_element(list, list.begin() + static_cast<std::ptrdiff_t>(list.size() / 2));
  return list[list.size() / 2];
}

void measure(const ShapeOf& shape, const Device& device, uint32_t splits) {
  const auto config = format::Json::parse(config_of(shape), "config");
  const model::Model model = model::Model::make(device, config, model::RandomWeights(), {});
  std::unique_ptr<ModelRunner> runners[2];  // whole, in parts
  for (const bool split : {false, true}) {
    model::RunnerOptions options;
    options.capacities = {1};
    options.context_tokens = kContext;
    options.plan.splits = split ? splits : 1;
    runners[split] = std::make_unique<ModelRunner>(model, options);
  }
  for (const uint32_t depth : {64u, 8192u}) {
    std::vector<double> us[2], ratios;
    for (const auto& runner : runners) {
      runner->set_slot(0, {.length = depth});
      step_us(*runner, depth);  // the first touches memory
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(4);
    for (int round = 0; round < 21 || std::chrono::steady_clock::now() < end; ++round) {
      for (const int turn : {0, 1})
        us[turn ^ (round & 1)].push_back(step_us(*runners[turn ^ (round & 1)], depth));
      ratios.push_back(us[1].back() / us[0].back());
    }
    fmt::print(
        "{} kv heads, depth {:5}: {} of {} attentions in parts; whole {:9.1f} us, in parts {:9.1f} us, "
        "ratio {:.3f} (least {:.3f})\n",
        shape.kv_heads, depth, runners[1]->report(0).rewrites.size(), 4, median(us[0]), median(us[1]),
        median(ratios), std::ranges::min(us[1]) / std::ranges::min(us[0]));
  }
}

}  // namespace

int main(int count, char** arguments) {
  DeviceOptions options;
  options.threads = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 2;
  options.validate = false;
  const Device device = Device::open("cpu", options);
  for (const ShapeOf& shape : kShapes)
    measure(shape, device, count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 0);
}

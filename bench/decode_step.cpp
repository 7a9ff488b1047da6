// A decode step of models of a given shape with random weights: tokens a second, bytes of weights a second, and where the
// time goes. The forward pass is the model's own, recorded as plain ops, planned and replayed like any other.
//   bench_decode_step [--device NAME] [--shape NAME]... [--depth N]... [--tokens N] [--exact] [--plain] [--kinds]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/format/json.h"
#include "refrain/model/random_weights.h"
#include "refrain/refrain.h"

namespace refrain {
namespace {

struct ShapeOf {
  std::string_view name, model_type, architecture;
  uint32_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
  bool tied;
};
constexpr ShapeOf kShapes[] = {
    {"qwen3-0.6b", "qwen3", "Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 151936, true},
    {"llama-1b", "llama", "LlamaForCausalLM", 2048, 16, 32, 8, 64, 8192, 128256, true},
    {"llama-3b", "llama", "LlamaForCausalLM", 3072, 28, 24, 8, 128, 8192, 128256, true},
    {"llama-8b", "llama", "LlamaForCausalLM", 4096, 32, 32, 8, 128, 14336, 128256, false},
};

struct Options {
  std::string device = "cpu";
  std::vector<std::string> shapes;
  std::vector<uint32_t> depths;
  uint32_t tokens = 64;
  bool exact = false, plain = false, kinds = false;
};

std::string config_of(const ShapeOf& s, uint32_t context) {
  return fmt::format(
      R"({{"model_type": "{}", "architectures": ["{}"], "hidden_size": {}, "num_hidden_layers": {}, "num_attention_heads": {},
"num_key_value_heads": {}, "head_dim": {}, "intermediate_size": {}, "vocab_size": {}, "tie_word_embeddings": {},
"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": {}, "rope_theta": 500000.0, "attention_bias": false}})",
      s.model_type, s.architecture, s.hidden, s.layers, s.heads, s.kv_heads, s.head_dim, s.intermediate,
      s.vocab, s.tied ? "true" : "false", context);
}

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

/// One slot at `depth`, as if that many tokens had been computed: what the cache holds does not matter here.
void place(model::ModelRunner& runner, uint32_t depth) {
  model::Slot slot;
  slot.length = depth;
  slot.last_token = 17;
  runner.set_slot(0, slot);
  const ops::StepRequest request{.slot = 0, .rows = 1};
  const uint32_t token = ops::kLastToken, output = 0;
  runner.submit({std::span(&request, 1), std::span(&token, 1), std::span(&output, 1)});
  runner.wait();
}

void measure(const ShapeOf& shape, const Options& options) {
  const uint32_t deepest = *std::ranges::max_element(options.depths);
  DeviceOptions device_options;
  Device device = Device::open(options.device, device_options);
  const auto begin = std::chrono::steady_clock::now();
  const format::Json config = format::Json::parse(config_of(shape, 65536), std::string(shape.name));
  model::LoadOptions load;
  load.mode = options.exact ? graph::Mode::exact : graph::Mode::fast;
  const model::Model model = model::Model::make(device, config, model::RandomWeights(), load);
  model::RunnerOptions runner_options;
  runner_options.capacities = {1};
  runner_options.context_tokens = deepest + 8 * options.tokens + 64;
  runner_options.plan.fuse = !options.plain;
  model::ModelRunner runner(model, runner_options);
  const PlanReport& report = runner.report(0);
  const double loaded = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print("{}: {} on {}, {} commands in {} levels, weights {:.2f} GB, made in {:.1f} s\n", shape.name,
             load.mode == graph::Mode::fast ? "fast" : "exact", device.info().name, report.commands,
             report.levels, static_cast<double>(model.weights().bytes) / 1e9, loaded);
  for (const uint32_t depth : options.depths) {
    std::vector<double> us;
    for (int round = 0; round < 6; ++round) {
      place(runner, depth);
      const auto start = std::chrono::steady_clock::now();
      for (uint32_t t = 0; t < options.tokens; ++t) runner.submit_next();
      runner.wait();
      const double taken =
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
      us.push_back(taken / options.tokens);
    }
    const double each = median(us);
    fmt::print("{} depth {} {:.1f} us/token {:.1f} tok/s {:.3f} TB/s of all weights (best {:.1f} us)\n",
               shape.name, depth, each, 1e6 / each, static_cast<double>(model.weights().bytes) / each / 1e6,
               *std::ranges::min_element(us));
  }
}

/// Time of each kind of kernel in one replay, and the gap before it.
void measure_kinds(const ShapeOf& shape, const Options& options) {
  Device device = Device::open(options.device, {});
  const format::Json config = format::Json::parse(config_of(shape, 65536), std::string(shape.name));
  model::LoadOptions load;
  load.mode = options.exact ? graph::Mode::exact : graph::Mode::fast;
  const model::Model model = model::Model::make(device, config, model::RandomWeights(), load);
  model::RunnerOptions runner_options;
  runner_options.capacities = {1};
  runner_options.context_tokens = options.depths[0] + 256;
  runner_options.plan.fuse = !options.plain;
  model::ModelRunner runner(model, runner_options);
  for (int warm = 0; warm < 3; ++warm) place(runner, options.depths[0]);
  Program timed = device.prepare(runner.program(0).plan(), {.timestamps = true, .label = "timed"});
  Point last;
  for (int warm = 0; warm < 5; ++warm) last = device.submit(timed);
  device.wait(last);
  const auto spans = device.timestamps_ns(timed);
  const auto& plan = runner.program(0).plan().data();
  struct Kind {
    uint32_t count = 0;
    double lead = 0, gap = 0, body = 0;
  };
  std::map<std::string, Kind> kinds;
  double before = spans.empty() ? 0 : spans[0].begin_ns;
  for (size_t i = 0; i < plan.commands.size(); ++i) {
    if (plan.commands[i].kind == backend::CommandKind::fence) continue;
    Kind& kind = kinds[backend::title(plan, plan.commands[i])];
    ++kind.count;
    kind.lead += spans[i].ready_ns - spans[i].begin_ns;
    kind.gap += spans[i].ready_ns - before;
    kind.body += spans[i].end_ns - spans[i].ready_ns;
    before = spans[i].end_ns;
  }
  fmt::print("{} depth {}, us a kernel: begun ahead of the wait, from the end of the one before past the wait, work\n",
             shape.name, options.depths[0]);
  for (const auto& [name, kind] : kinds) {
    fmt::print("  {:<40} x{:<4} {:8.2f} {:8.2f} {:8.2f}\n", name, kind.count, kind.lead / kind.count / 1e3,
               kind.gap / kind.count / 1e3, kind.body / kind.count / 1e3);
  }
}

Options parse(int count, char** values) {
  Options options;
  const auto next = [&](int& i) -> std::string {
    if (i + 1 >= count) throw InvalidArgument(fmt::format("{}: expected a value", values[i]));
    return values[++i];
  };
  for (int i = 1; i < count; ++i) {
    const std::string_view option = values[i];
    if (option == "--device") {
      options.device = next(i);
    } else if (option == "--shape") {
      options.shapes.push_back(next(i));
    } else if (option == "--depth") {
      options.depths.push_back(static_cast<uint32_t>(std::stoul(next(i))));
    } else if (option == "--tokens") {
      options.tokens = static_cast<uint32_t>(std::stoul(next(i)));
    } else if (option == "--exact") {
      options.exact = true;
    } else if (option == "--plain") {
      options.plain = true;
    } else if (option == "--kinds") {
      options.kinds = true;
    } else {
      throw InvalidArgument(fmt::format("unknown option {}", option));
    }
  }
  if (options.depths.empty()) options.depths = {512};
  return options;
}

int run(int count, char** values) {
  const Options options = parse(count, values);
  for (const ShapeOf& shape : kShapes) {
    if (!options.shapes.empty() && std::ranges::find(options.shapes, shape.name) == options.shapes.end())
      continue;
    measure(shape, options);
    if (options.kinds) measure_kinds(shape, options);
  }
  return 0;
}

}  // namespace
}  // namespace refrain

int main(int count, char** values) {
  try {
    return refrain::run(count, values);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_decode_step: {}\n", error.what());
    return 1;
  }
}

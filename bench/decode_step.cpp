// Decode steps and prompts of models of a given shape with random weights: tokens a second, bytes of weights a second, and
// where the time goes. The forward pass is the model's own, recorded as plain ops, planned and replayed like any other.
//   bench_decode_step [--device NAME] [--shape NAME]... [--depth N]... [--sequences N]... [--tokens N] [--prompt N]...
//     [--chunk N] [--exact] [--plain] [--kinds] [--cache f32|f16]
// --sequences: so many at once, one row each (1). --prompt: in place of decode steps, a prompt of so many tokens, in chunks of
// --chunk rows (512). --kinds: where the time goes, a line for each kind of kernel.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <optional>
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
  std::vector<uint32_t> depths, sequences, prompts;
  uint32_t tokens = 64, chunk = 512;
  bool exact = false, plain = false, kinds = false;
  std::optional<DType> cache = std::nullopt;
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

/// The first slots at `depth`, as if that many tokens had been computed: what the cache holds does not matter here.
void place(model::ModelRunner& runner, uint32_t depth, uint32_t sequences = 1) {
  std::vector<ops::StepRequest> requests;
  std::vector<uint32_t> outputs;
  for (uint32_t s = 0; s < sequences; ++s) {
    model::Slot slot;
    slot.length = depth;
    slot.last_token = 17;
    runner.set_slot(s, slot);
    requests.push_back({.slot = s, .rows = 1});
    outputs.push_back(s);
  }
  const std::vector<uint32_t> tokens(sequences, ops::kLastToken);
  runner.submit({requests, tokens, outputs});
  runner.wait();
}

/// A model of the shape with random weights, and its runner.
struct Made {
  Made(const ShapeOf& shape, const Options& options)
      : device(Device::open(options.device)),
        model(model::Model::make(
            device, format::Json::parse(config_of(shape, 65536), std::string(shape.name)),
            model::RandomWeights(),
            {.mode = options.exact ? graph::Mode::exact : graph::Mode::fast, .progress = {}, .log = {}})),
        runner(model, runner_options(options)) {}

  static model::RunnerOptions runner_options(const Options& options) {
    model::RunnerOptions result;
    result.slots = *std::ranges::max_element(options.sequences);
    result.capacities = options.prompts.empty() ? options.sequences : std::vector{options.chunk};
    result.context_tokens = *std::ranges::max_element(options.depths) + 8 * options.tokens + 64;
    for (const uint32_t prompt : options.prompts)
      result.context_tokens = std::max(result.context_tokens, prompt + 16 * options.chunk);
    result.plan.fuse = !options.plain;
    result.cache = options.cache;
    return result;
  }

  Device device;
  model::Model model;
  model::ModelRunner runner;
};

void measure(Made& made, const ShapeOf& shape, const Options& options) {
  const auto weight_bytes = static_cast<double>(made.model.weights().bytes);
  for (const uint32_t depth : options.depths) {
    for (const uint32_t sequences : options.sequences) {
      std::vector<double> us;
      for (int round = 0; round < 6; ++round) {
        place(made.runner, depth, sequences);
        const auto start = std::chrono::steady_clock::now();
        for (uint32_t t = 0; t < options.tokens; ++t) made.runner.submit_next();
        made.runner.wait();
        us.push_back(
            std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() /
            options.tokens);
      }
      const double each = median(us);
      fmt::print(
          "{} depth {}, {} at once: {:.1f} us a step (least {:.1f}), {:.1f} tok/s, {:.3f} TB/s of weights\n",
          shape.name, depth, sequences, each, *std::ranges::min_element(us), sequences * 1e6 / each,
          weight_bytes / each / 1e6);
    }
  }
}

void run_prompt(model::ModelRunner& runner, uint32_t length, uint32_t chunk) {
  runner.set_slot(0, {});
  const std::vector<uint32_t> tokens(length, 17);
  for (uint32_t begin = 0; begin < length; begin += chunk) {
    const uint32_t rows = std::min(chunk, length - begin), last = rows - 1;
    const ops::StepRequest request{.slot = 0, .rows = rows};
    const std::span outputs(&last, begin + rows == length ? 1 : 0);
    runner.submit({std::span(&request, 1), std::span(tokens).subspan(begin, rows), outputs});
  }
  runner.wait();
}

void measure_prompts(Made& made, const ShapeOf& shape, const Options& options) {
  for (const uint32_t length : options.prompts) {
    std::vector<double> us;
    for (int round = 0; round < 6; ++round) {
      const auto start = std::chrono::steady_clock::now();
      run_prompt(made.runner, length, options.chunk);
      us.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    fmt::print("{} prompt of {}: {:.1f} us (least {:.1f}), {:.0f} tok/s\n", shape.name, length, median(us),
               *std::ranges::min_element(us), 1e6 * length / median(us));
  }
}

/// Of each kind of kernel in one replay, of a prompt's chunk behind eight others: how long it was there ahead of its wait, how long after the end of the one before
/// it was past that, and how long it then worked.
void measure_kinds(Made& made, const ShapeOf& shape, const Options& options) {
  if (options.prompts.empty()) {
    for (int warm = 0; warm < 3; ++warm)
      place(made.runner, options.depths.front(), options.sequences.front());
  } else {
    run_prompt(made.runner, options.chunk, options.chunk);
  }
  const Program timed =
      made.device.prepare(made.runner.program(0).plan(), {.timestamps = true, .label = "timed"});
  Point last;
  for (int warm = 0; warm < 8; ++warm) last = made.device.submit(timed);
  made.device.wait(last);
  struct Kind {
    uint32_t count = 0;
    double lead = 0, gap = 0, work = 0;
  };
  std::map<std::string, Kind> kinds;
  const Profile profile(made.device, timed);
  double before = profile.spans().front().begin_ns;
  for (const ProfileSpan& span : profile.spans()) {
    Kind& kind = kinds[span.kernel];
    ++kind.count;
    kind.lead += span.ready_ns - span.begin_ns;
    kind.gap += span.ready_ns - before;
    kind.work += span.end_ns - span.ready_ns;
    before = span.end_ns;
  }
  fmt::print("{}, us a kernel:{:>31} lead      gap     work\n", shape.name, "");
  for (const auto& [name, kind] : kinds) {
    const double each = 1e-3 / kind.count;
    fmt::print("  {:<40} x{:<4} {:8.2f} {:8.2f} {:8.2f}\n", name, kind.count, kind.lead * each,
               kind.gap * each, kind.work * each);
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
    } else if (option == "--sequences") {
      options.sequences.push_back(static_cast<uint32_t>(std::stoul(next(i))));
    } else if (option == "--prompt") {
      options.prompts.push_back(static_cast<uint32_t>(std::stoul(next(i))));
    } else if (option == "--chunk") {
      options.chunk = static_cast<uint32_t>(std::stoul(next(i)));
    } else if (option == "--cache") {
      const std::string type = next(i);
      if (type != "f16" && type != "f32")
        throw InvalidArgument(fmt::format("--cache: expected f32 or f16, got {}", type));
      options.cache = type == "f16" ? DType::f16 : DType::f32;
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
  if (options.sequences.empty()) options.sequences = {1};
  std::ranges::sort(options.sequences);
  const auto again = std::ranges::unique(options.sequences);
  options.sequences.erase(again.begin(), again.end());
  for (const std::string& shape : options.shapes) {
    if (std::ranges::find(kShapes, shape, &ShapeOf::name) == std::end(kShapes))
      throw InvalidArgument(fmt::format("--shape: expected one that is known, got {}", shape));
  }
  return options;
}

int run(int count, char** values) {
  const Options options = parse(count, values);
  for (const ShapeOf& shape : kShapes) {
    if (!options.shapes.empty() && std::ranges::find(options.shapes, shape.name) == options.shapes.end())
      continue;
    const auto begin = std::chrono::steady_clock::now();
    Made made(shape, options);
    const PlanReport& report = made.runner.report(0);
    fmt::print("{}: {} on {}, {} commands in {} levels, weights {:.2f} GB, made in {:.1f} s\n", shape.name,
               options.exact ? "exact" : "fast", made.device.info().name, report.commands, report.levels,
               static_cast<double>(made.model.weights().bytes) / 1e9,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    options.prompts.empty() ? measure(made, shape, options) : measure_prompts(made, shape, options);
    if (options.kinds) measure_kinds(made, shape, options);
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

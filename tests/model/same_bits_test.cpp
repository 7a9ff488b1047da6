// Law 10: a row has the same bits for any number of threads, any cut of the prompt, any neighbours in the
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "refrain/format/json.h"
#include "refrain/model/random_weights.h"
#include "tests/model/tales.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using model::ModelRunner;
using model::RunnerOptions;
using model::StepRequest;

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

RunnerOptions runner_options(std::vector<uint32_t> capacities, uint32_t slots = 1,
                             std::optional<DType> cache = std::nullopt) {
  RunnerOptions options;
  options.cache = cache;
  options.context_tokens = 256;
  options.slots = slots;
  options.outputs = capacities.back();
  options.capacities = std::move(capacities);
  return options;
}

/// |a - b| / |b|, of vectors.
double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

class SameBitsOf : public EachCache {};
INSTANTIATE_TEST_SUITE_P(Cache, SameBitsOf, ::testing::Values(DType::f32, DType::f16), cache_name);

TEST(SameBits, AnyNumberOfThreads) {
  const std::vector<uint32_t> ids = some_ids(150);
  for (const bool portable : {false, true}) {
    std::vector<float> expected;
    for (const uint32_t threads : {1u, 2u, 3u}) {
      ModelRunner runner(open_tales(threads, true, portable), runner_options({1, 64}));
      const std::vector<float> logits = all_logits(runner, ids);
      if (expected.empty()) expected = logits;
      EXPECT_TRUE(same_bits(logits, expected)) << threads << " threads, portable " << portable;
    }
  }
}

TEST(SameBits, MemoryOutOfReachChangesNothing) {
  const std::vector<uint32_t> ids = some_ids(70);
  std::vector<float> logits[2];
  std::vector<uint32_t> tokens[2];
  for (const bool remote : {false, true}) {
    DeviceOptions options;
    options.threads = 2;
    const Device device = Device::open(remote ? "remote" : "cpu", options);
    ModelRunner runner(model::Model::load(device, kTales), runner_options({1, 64}));
    logits[remote] = all_logits(runner, ids);
    model::GenerateOptions generate;
    generate.max_tokens = 30;
    generate.sampling = {.temperature = 0.8f, .seed = 7};
    generate.on_token = [&](uint32_t id) {
      tokens[remote].push_back(id);
      return true;
    };
    model::generate(runner, ids, generate);
  }
  EXPECT_TRUE(same_bits(logits[0], logits[1]));
  EXPECT_EQ(tokens[0].size(), 30u);
  EXPECT_EQ(tokens[0], tokens[1]);
}

TEST(SameBits, PortableAndVectorisedKernelsAgreeToRounding) {
  const std::vector<uint32_t> ids = some_ids(100);
  ModelRunner vectorised(open_tales(2, true, false), runner_options({64}));
  ModelRunner portable(open_tales(2, true, true), runner_options({64}));
  const std::vector<float> a = all_logits(vectorised, ids), b = all_logits(portable, ids);
  // The exact mode's own bound against a reference.
  EXPECT_LT(relative_difference(a, b), 1e-4);
}

TEST_P(SameBitsOf, TheDeviceAgreesWithTheCpuToRounding) {
  if (std::string_view(device_name()) == "cpu") GTEST_SKIP() << "REFRAIN_TEST_DEVICE names no device";
  const std::vector<uint32_t> ids = some_ids(150);
  ModelRunner device(open_tales(2), runner_options({1, 64}, 1, GetParam()));
  ModelRunner cpu(model::Model::load(Device::open("cpu"), kTales), runner_options({64}, 1, GetParam()));
  const double difference = relative_difference(all_logits(device, ids), all_logits(cpu, ids));
  // 12 bits of each activation in 128 columns: about 9e-4 of a trained model's logits.
  EXPECT_LT(difference, mode() == graph::Mode::fast ? 5e-3 : 1e-4);
  RecordProperty("relative_difference", std::to_string(difference));
}

TEST_P(SameBitsOf, AnyCutOfThePrompt) {
  const std::vector<uint32_t> ids = some_ids(150);
  const model::Model model = open_tales(2);
  std::vector<float> expected;
  // Chunks of one, of a few, across page boundaries, of everything at once.
  for (const uint32_t capacity : {1u, 2u, 7u, 63u, 64u, 65u, 150u}) {
    ModelRunner runner(model, runner_options({capacity}, 1, GetParam()));
    const std::vector<float> logits = all_logits(runner, ids);
    if (expected.empty()) expected = logits;
    EXPECT_TRUE(same_bits(logits, expected)) << "chunks of " << capacity;
  }
}

TEST(SameBits, ACacheInF16RoundsAndNoMore) {
  const std::vector<uint32_t> ids = some_ids(150);
  const model::Model model = open_tales(2);
  ModelRunner half(model, runner_options({64}, 1, DType::f16)),
      whole(model, runner_options({64}, 1, DType::f32));
  // Keys and values are off by 2^-11 of themselves at most, by a third of that as a rule; an average of values by less.
  const double difference = relative_difference(all_logits(half, ids), all_logits(whole, ids));
  // In the mode fast, activations that differ a little may be rounded to neighbours.
  EXPECT_LT(difference, mode() == graph::Mode::fast ? 0x1p-9 : 0x1p-11);
  EXPECT_GT(difference, 0x1p-11 / 100) << "it rounds";
}

TEST(SameBits, TheCacheIsOfTheModesTypeUnlessTold) {
  const model::Model model = open_tales(1);
  const auto type_of = [&](std::optional<DType> cache) {
    return ModelRunner(model, runner_options({1}, 1, cache)).cache().layer(0).dtype();
  };
  EXPECT_EQ(type_of(std::nullopt), mode() == graph::Mode::fast ? DType::f16 : DType::f32);
  EXPECT_EQ(type_of(DType::f32), DType::f32);
  EXPECT_EQ(type_of(DType::f16), DType::f16);
  EXPECT_EQ(refusal([&] { type_of(DType::bf16); }), "[kv_cache] type: expected f32 or f16, got bf16");
}

// The one default of each mode, and on a CPU what `fast` is: exact kernels and that cache.
TEST(SameBits, FastOnACpuIsExactWithACacheInF16) {
  const std::vector<uint32_t> ids = some_ids(70);
  std::vector<float> logits[2];
  for (const graph::Mode mode : {graph::Mode::exact, graph::Mode::fast}) {
    const model::Model model =
        model::Model::load(Device::open("cpu"), kTales, {.mode = mode, .progress = {}, .log = {}});
    const bool fast = mode == graph::Mode::fast;
    ModelRunner runner(model, runner_options({64}, 1, fast ? std::nullopt : std::optional(DType::f16)));
    logits[fast] = all_logits(runner, ids);
  }
  EXPECT_TRUE(same_bits(logits[0], logits[1]));
}

TEST_P(SameBitsOf, TheClassOfTheCacheWriteSaysWhatItKeeps) {
  const ModelRunner runner(open_tales(2), runner_options({1, 7, 64}, 1, GetParam()));
  for (const size_t member : {0u, 1u, 2u}) {
    size_t writes = 0;
    for (const graph::OpNumerics& op : runner.report(member).numerics) {
      if (op.op != "kv_write") continue;
      EXPECT_EQ(op.numerics, GetParam() == DType::f16 ? ops::kKvWriteF16Numerics : "exact, copy");
      ++writes;
    }
    EXPECT_EQ(writes, 1u);
  }
}

// Over several chunks of attention, one row a step and several; the prompt's rows are computed whole.
TEST_P(SameBitsOf, AttentionInAnyNumberOfParts) {
  const std::vector<uint32_t> ids = some_ids(600);
  const auto logits_of = [&](uint32_t threads, uint32_t capacity, uint32_t splits, bool rewritten) {
    RunnerOptions options = runner_options({capacity}, 1, GetParam());
    options.context_tokens = 1024;
    options.plan.splits = splits;
    ModelRunner runner(open_tales(threads), options);
    // In the mode fast a GPU's attention is of another class than its parts, and stays whole.
    if (mode() == graph::Mode::exact) {
      EXPECT_EQ(runner.report(0).rewrites.size(), rewritten ? 6u : 0u)
          << capacity << " rows, splits " << splits;
    }
    return all_logits(runner, ids);
  };
  const std::vector<float> expected = logits_of(2, 64, 1, false);
  for (const uint32_t splits : {1u, 2u, 3u, 100u})
    EXPECT_TRUE(same_bits(logits_of(2, 7, splits, splits != 1), expected)) << splits << " parts";
  EXPECT_TRUE(same_bits(logits_of(2, 1, 3, true), expected));
  EXPECT_TRUE(same_bits(logits_of(2, 64, 3, false), expected)) << "blocks of rows stay whole";
  // As the device does best: a CPU's workers share what they have too few key-value heads for.
  const bool composes = Device::open(device_name()).info().composes;
  EXPECT_TRUE(same_bits(logits_of(3, 1, 0, composes), expected));
}

TEST(SameBits, ChunksAndSingleTokensShareOneCache) {
  const std::vector<uint32_t> ids = some_ids(100);
  const model::Model model = open_tales(2);
  ModelRunner alone(model, runner_options({1}));
  const std::vector<float> expected = all_logits(alone, ids);
  const size_t vocab = model.config().vocab;

  // 64 rows, then 30, then one at a time: programs of two capacities over one cache.
  ModelRunner runner(model, runner_options({1, 64}));
  for (size_t begin = 0; begin < ids.size();) {
    const size_t count = begin == 0 ? 64 : begin == 64 ? 30 : 1;
    submit_tokens(runner, 0, std::span(ids).subspan(begin, count), static_cast<uint32_t>(count));
    runner.wait();
    for (size_t i = 0; i < count; ++i) {
      EXPECT_TRUE(same_bits(runner.logits(static_cast<uint32_t>(i)),
                            std::span(expected).subspan((begin + i) * vocab, vocab)))
          << "position " << begin + i;
    }
    begin += count;
  }
}

TEST_P(SameBitsOf, TwoSlotsInOneBatchAreWhatEachIsAlone) {
  const model::Model model = open_tales(2);
  const std::vector<uint32_t> first = some_ids(90, 1), second = some_ids(70, 2);
  const size_t vocab = model.config().vocab;
  ModelRunner alone(model, runner_options({1, 64}, 1, GetParam()));
  const std::vector<float> expected[2] = {all_logits(alone, first), all_logits(alone, second)};

  // Ragged: in every step the one gives three rows and the other two, in turn first, until each has run out.
  ModelRunner runner(model, runner_options({8}, 2, GetParam()));
  const std::vector<uint32_t>* ids[2] = {&first, &second};
  size_t done[2] = {0, 0};
  for (size_t turn = 0; done[0] < first.size() || done[1] < second.size(); ++turn) {
    std::vector<StepRequest> requests;
    std::vector<uint32_t> tokens, outputs;
    std::vector<std::pair<size_t, size_t>> what;  // slot and position of each row
    for (const size_t s : {turn % 2, 1 - turn % 2}) {
      const size_t rows = std::min(3 - s, ids[s]->size() - done[s]);
      if (rows != 0)
        requests.push_back({.slot = static_cast<uint32_t>(s), .rows = static_cast<uint32_t>(rows)});
      for (size_t i = 0; i < rows; ++i) {
        outputs.push_back(static_cast<uint32_t>(tokens.size()));
        tokens.push_back((*ids[s])[done[s]]);
        what.emplace_back(s, done[s]++);
      }
    }
    runner.submit({requests, tokens, outputs});
    runner.wait();
    for (uint32_t o = 0; o < what.size(); ++o) {
      const auto [s, position] = what[o];
      EXPECT_TRUE(same_bits(runner.logits(o), std::span(expected[s]).subspan(position * vocab, vocab)))
          << "slot " << s << " position " << position;
    }
  }
}

TEST_P(SameBitsOf, FusingChangesNothing) {
  const std::vector<uint32_t> ids = some_ids(80);
  for (const bool portable : {false, true}) {
    std::vector<float> expected;
    for (const uint32_t threads : {1u, 2u, 3u}) {
      const model::Model model = open_tales(threads, true, portable);
      for (const uint32_t capacity : {1u, 7u, 64u}) {
        for (const bool fuse : {false, true}) {
          RunnerOptions options = runner_options({capacity}, 1, GetParam());
          options.plan.fuse = fuse;
          options.plan.most_fused_rows = capacity;
          ModelRunner runner(model, options);
          const bool fuses = fuse && (model.device().info().composes || mode() == graph::Mode::fast);
          EXPECT_EQ(runner.report(0).fusions.empty(), !fuses);
          const std::vector<float> logits = all_logits(runner, ids);
          ASSERT_FALSE(logits.empty());
          if (expected.empty()) expected = logits;
          EXPECT_TRUE(same_bits(logits, expected)) << threads << " threads, portable " << portable
                                                   << ", capacity " << capacity << ", fused " << fuse;
        }
      }
    }
  }
}

// Rows of several thousand columns are divided among blocks where there are more rows than one and a GPU has room.
TEST(SameBits, AnyRowsOfAWideModel) {
  const char* const config =
      R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2112,
"num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 3200,
"vocab_size": 1500, "tie_word_embeddings": true, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
"rope_theta": 10000.0, "attention_bias": false})";
  const model::Model model =
      model::Model::make(Device::open(device_name()), format::Json::parse(config, "wide"),
                         model::RandomWeights(), {.mode = mode(), .progress = {}, .log = {}});
  const std::vector<uint32_t> ids = some_ids(70);
  ModelRunner one(model, runner_options({1}));
  const std::vector<float> expected = all_logits(one, ids);
  for (const uint32_t capacity : {2u, 3u, 8u, 37u, 64u}) {
    for (const bool fuse : {true, false}) {
      RunnerOptions options = runner_options({capacity});
      options.plan.fuse = fuse;
      ModelRunner runner(model, options);
      for (int again = 0; again < 2; ++again)
        EXPECT_TRUE(same_bits(all_logits(runner, ids), expected)) << capacity << " rows, fused " << fuse;
    }
  }
}

/// Of rows, a + b.
void add_rows(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const size_t columns = args.constants_as<ops::AddConstants>().columns;
  for (size_t i = begin * columns; i < end * columns; ++i)
    args.arg<float>(2)[i] = args.arg<float>(0)[i] + args.arg<float>(1)[i];
}

TEST(SameBits, CapacitiesOfTwoClassesAreRefused) {
  const model::Model model = open_tales(2);
  if (!model.device().info().composes) GTEST_SKIP() << "C++ functions are not run there";
  model.device().kernels().add(
      {.name = "add_one_row",
       .op = &ops::add_schema,
       .numerics = "of one row",
       .accepts = [](const backend::OpCall& call) { return call.args[0].shape[0] == 1; },
       .entry = {nullptr, nullptr, add_rows}});
  const ModelRunner one(model, runner_options({1})), many(model, runner_options({7, 64}));
  EXPECT_EQ(one.report(0).numerics_of.size(), many.report(1).numerics_of.size());
  const std::string error = refusal([&] { ModelRunner(model, runner_options({1, 64})); });
  EXPECT_EQ(error.substr(0, error.find(", got")),
            "[plan] add of f32, f32, f32: expected one numerics class in the plans of a model");
  EXPECT_NE(error.find("kernel add_one_row of the class 'of one row' and kernel add_f32_"), std::string::npos)
      << error;
}

TEST(SameBits, AModelsModeIsThatOfItsPlans) {
  for (const graph::Mode mode : {graph::Mode::exact, graph::Mode::fast}) {
    const model::Model model =
        model::Model::load(Device::open("cpu"), kTales, {.mode = mode, .progress = {}, .log = {}});
    model.device().kernels().add({.name = "add_fast",
                                  .op = &ops::add_schema,
                                  .numerics = "rounded",
                                  .needs = backend::kFeatureFast,
                                  .entry = {nullptr, nullptr, add_rows}});
    RunnerOptions options = runner_options({1});
    options.plan.mode = mode == graph::Mode::fast ? graph::Mode::exact : graph::Mode::fast;
    const ModelRunner runner(model, options);
    const auto& numerics = runner.report(0).numerics;
    EXPECT_EQ(std::ranges::count(numerics, std::string("add_fast"), &graph::OpNumerics::kernel),
              mode == graph::Mode::fast);
  }
}

TEST(SameBits, MemoryReuseChangesNothing) {
  const std::vector<uint32_t> ids = some_ids(80);
  const model::Model model = open_tales(2);
  RunnerOptions options = runner_options({64});
  ModelRunner shared(model, options);
  options.plan.reuse_memory = false;
  ModelRunner separate(model, options);
  EXPECT_LT(shared.arena_bytes(), separate.arena_bytes());
  EXPECT_TRUE(same_bits(all_logits(shared, ids), all_logits(separate, ids)));
}

TEST(SameBits, AnyOrderOfCommands) {
  const std::vector<uint32_t> ids = some_ids(80);
  const model::Model model = open_tales(2);
  std::vector<float> expected;
  for (const graph::CommandOrder order : {graph::CommandOrder::recorded, graph::CommandOrder::levels}) {
    for (const bool fuse : {true, false}) {
      RunnerOptions options = runner_options({1, 64});
      options.plan.order = order;
      options.plan.fuse = fuse;
      options.plan.check = true;
      ModelRunner runner(model, options);
      const PlanReport& report = runner.report(1);
      EXPECT_LE(report.barriers, report.barriers_before);
      if (order == graph::CommandOrder::levels) {
        EXPECT_EQ(report.barriers + 1, report.levels);
      }
      const std::vector<float> logits = all_logits(runner, ids);
      if (expected.empty()) expected = logits;
      EXPECT_TRUE(same_bits(logits, expected)) << "order " << static_cast<int>(order) << ", fuse " << fuse;
    }
  }
}

TEST(SameBits, DecodeOnTheDeviceIsWhatTheHostWouldSend) {
  const model::Model model = open_tales(2);
  const std::vector<uint32_t> prompt = some_ids(20);
  ModelRunner runner(model, runner_options({1, 64}));
  for (const model::Sampling& sampling :
       {model::Sampling{}, model::Sampling{.temperature = 0.9f, .top_k = 50, .top_p = 0.95f, .seed = 7}}) {
    std::vector<uint32_t> replayed;
    model::GenerateOptions options;
    options.max_tokens = 40;
    options.sampling = sampling;
    options.on_token = [&](uint32_t id) {
      replayed.push_back(id);
      return true;
    };
    model::generate(runner, prompt, options);
    ASSERT_EQ(replayed.size(), 40u);

    // The same by hand: every token sent anew by the host.
    std::vector<uint32_t> sent = prompt;
    runner.set_slot(0, {.top_k = sampling.top_k,
                        .temperature = sampling.temperature,
                        .top_p = sampling.top_p,
                        .seed = sampling.seed});
    for (uint32_t i = 0; i < sent.size() && sent.size() < prompt.size() + 40; ++i) {
      submit_tokens(runner, 0, std::span(sent).subspan(i, 1));
      runner.wait();
      if (i + 1 >= prompt.size()) sent.push_back(runner.sampled(0));
    }
    EXPECT_EQ(replayed,
              std::vector<uint32_t>(sent.begin() + static_cast<ptrdiff_t>(prompt.size()), sent.end()));
  }
}

}  // namespace
}  // namespace refrain::test

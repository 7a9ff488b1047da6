// The fuse pass: what it makes one, what it leaves alone and why, and that no value changes by it.
#include "refrain/graph/fuse.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <optional>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/device.h"
#include "refrain/format/model_folder.h"
#include "refrain/format/plain.h"
#include "refrain/graph/accesses.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/make_plan.h"
#include "refrain/model/architecture.h"
#include "refrain/model/decoder_config.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/ops.h"
#include "refrain/ops/testing.h"
#include "tests/model/first_layers.h"

namespace refrain::null_tests {
namespace {

using backend::MemberRole;
using graph::kNone;

constexpr int64_t kRows = 8, kWidth = 32, kWide = 96;

const std::vector<backend::Kernel>& null_table() {
  static const std::vector<backend::Kernel> kernels = ops::null_kernels();
  return kernels;
}
const std::vector<backend::Kernel>& cpu_table() {
  static const std::vector<backend::Kernel> kernels = ops::cpu_kernels();
  return kernels;
}

/// Small recordings on a CPU device of two workers, each run plain and fused.
class Fuse : public ::testing::Test {
 protected:
  Fuse() {
    backend::CpuOptions options;
    options.threads = 2;
    device_ = Device(backend::make_validate(backend::make_cpu(options, cpu_table())), ops::cpu_layouts(), {});
    count_ = device_.buffer(DType::u32, {1});
    other_count_ = device_.buffer(DType::u32, {1});
    count_.span<uint32_t>()[0] = 5;
    other_count_.span<uint32_t>()[0] = 5;
    x_ = filled({kRows, kWidth});
    gain_ = weight({kWidth}, {Use::vector});
  }

  Buffer filled(const Shape& shape) {
    Buffer buffer = device_.buffer(DType::f32, shape);
    for (float& value : buffer.span<float>()) value = random_.uniform();
    buffers_.push_back(buffer);
    contents_.emplace_back(buffer.span<float>().begin(), buffer.span<float>().end());
    return buffer.with_live_rows(count_);
  }
  Weight weight(const Shape& shape, Uses uses) {
    std::vector<float> values(static_cast<size_t>(shape.elements()));
    for (float& value : values) value = random_.uniform();
    const std::vector<std::byte> bytes = ops::harness::encode(DType::f32, values);
    return device_.pack(format::plain_tensor("weight", DType::f32, shape, bytes), uses);
  }
  Weight matrix(int64_t outputs, int64_t columns = kWidth) {
    return weight({outputs, columns}, {Use::matvec, Use::matmul});
  }
  Temp temp(CommandEncoder& e, int64_t width = kWidth) { return e.temp(DType::f32, {kRows, width}, count_); }

  void norm(CommandEncoder& e, const Operand& input, const Operand& output) {
    ops::rms_norm(e, {.input = input, .weight = gain_, .output = output});
  }

  /// Plans with and without fusing, runs both from the same contents, expects the same bytes in every buffer.
  PlanReport fused(const std::function<void(CommandEncoder&)>& record) {
    std::vector<std::vector<float>> results[2];
    PlanReport reports[2];
    for (const bool fuse : {false, true}) {
      for (size_t i = 0; i < buffers_.size(); ++i)
        std::ranges::copy(contents_[i], buffers_[i].span<float>().begin());
      CommandEncoder encoder = device_.encoder();
      record(encoder);
      PlanOptions options;
      options.fuse = fuse;
      options.check = true;
      auto [plan, report] = device_.plan(encoder.finish(), options);
      reports[fuse] = std::move(report);
      const Program program = device_.prepare(plan);
      device_.wait(device_.submit(program));
      for (const Buffer& buffer : buffers_)
        results[fuse].emplace_back(buffer.span<float>().begin(), buffer.span<float>().end());
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_EQ(0,
                std::memcmp(results[0][i].data(), results[1][i].data(), results[0][i].size() * sizeof(float)))
          << "buffer " << i;
    }
    EXPECT_TRUE(reports[0].fusions.empty());
    EXPECT_LE(reports[1].commands, reports[0].commands);
    return reports[1];
  }

  static void expect_miss(const PlanReport& report, const std::string& part) {
    bool found = false;
    std::string all;
    for (const std::string& miss : report.misses) {
      found |= miss.find(part) != std::string::npos;
      all += "\n  " + miss;
    }
    EXPECT_TRUE(found) << "no miss says: " << part << all;
  }

  using Names = std::vector<std::string>;
  ops::harness::Random random_;
  Device device_{backend::make_null(null_table()), ops::cpu_layouts(), {}};
  Buffer count_, other_count_, x_;
  Weight gain_;
  std::vector<Buffer> buffers_;
  std::vector<std::vector<float>> contents_;
};

TEST_F(Fuse, PrologueSiblingsAndEpilogueAreOneCommand) {
  const Weight gate_weight = matrix(kWide), up_weight = matrix(kWide);
  const Buffer out = filled({kRows, kWide});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp h = temp(e), gate = temp(e, kWide), up = temp(e, kWide);
    norm(e, x_, h);
    ops::matmul(e, {h, gate_weight, gate});
    ops::matmul(e, {h, up_weight, up});
    ops::silu_mul(e, {gate, up, out});
  });
  EXPECT_EQ(report.fusions, Names{"rms_norm+matmul*2+silu_mul: #0 #1 #2 #3"});
  EXPECT_TRUE(report.misses.empty());
  EXPECT_EQ(report.commands, 1u);
  EXPECT_EQ(report.recorded_levels, 3u);
  EXPECT_EQ(report.fused_levels, 1u);
}

TEST_F(Fuse, AValueReadOutsideIsAlsoWrittenOut) {
  const Weight w = matrix(kWidth);
  const Buffer sum = filled({kRows, kWidth}), twice = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e), h = temp(e);
    ops::matmul(e, {x_, w, y});
    ops::add(e, {x_, y, sum});
    norm(e, y, h);  // left alone: it is the prologue of the next
    ops::matmul(e, {h, w, twice});
  });
  EXPECT_EQ(report.fusions, (Names{"matmul+add: #0 #1", "rms_norm+matmul: #2 #3"}));
}

TEST_F(Fuse, ANormThatIsReadElsewhereKeepsItsMemory) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth}), copy = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp h = temp(e), y = temp(e);
    norm(e, x_, h);
    ops::matmul(e, {h, w, y});
    ops::add(e, {y, x_, out});
    ops::add(e, {h, h, copy});  // the same value twice, too
  });
  EXPECT_EQ(report.fusions, Names{"matmul+add: #1 #2"});
  expect_miss(report, "#0 rms_norm does not join matmul at #1: #3 add reads its value, too");
}

TEST_F(Fuse, ABufferIsNeverElided) {
  const Weight w = matrix(kWidth);
  const Buffer h = filled({kRows, kWidth}), y = filled({kRows, kWidth}), out = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    norm(e, x_, h);
    ops::matmul(e, {h, w, y});
    ops::add(e, {y, x_, out});
  });
  EXPECT_TRUE(report.fusions.empty());
  EXPECT_EQ(report.commands, 3u);
}

TEST_F(Fuse, TwoViewsOfOneArenaAreNotOneValue) {
  const Weight w = matrix(kWidth);
  const Buffer arena = filled({2 * kRows, kWidth}), out = filled({kRows, kWidth});
  const Buffer first = arena.slice(0, kRows).with_live_rows(count_);
  const Buffer second = arena.slice(kRows, kRows).with_live_rows(count_);
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {x_, w, y});
    ops::add(e, {y, second, first});
    ops::add(e, {second, second, out});
  });
  EXPECT_EQ(report.fusions, Names{"matmul+add: #0 #1"});
}

TEST_F(Fuse, ViewsThatMeetDoNotOverlap) {
  const Weight w = matrix(kWidth);
  const Buffer all = filled({2 * kRows, kWidth});
  const Buffer low = all.slice(0, kRows).with_live_rows(count_),
               high = all.slice(kRows, kRows).with_live_rows(count_),
               over = all.slice(kRows - 1, kRows).with_live_rows(count_);
  const auto products = [&](const Buffer& first, const Buffer& second) {
    return fused([&](CommandEncoder& e) {
      ops::matmul(e, {x_, w, first});
      ops::matmul(e, {x_, w, second});
    });
  };
  EXPECT_EQ(products(low, high).fusions, Names{"matmul*2: #0 #1"});
  EXPECT_EQ(products(high, low).fusions, Names{"matmul*2: #0 #1"});
  EXPECT_TRUE(products(low, over).fusions.empty());
  EXPECT_TRUE(products(over, low).fusions.empty());
}

TEST_F(Fuse, BothOperandsMayBeTheSameValue) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {x_, w, y});
    ops::silu_mul(e, {y, y, out});
  });
  EXPECT_EQ(report.fusions, Names{"matmul+silu_mul: #0 #1"});
}

TEST_F(Fuse, InPlaceIsUnitByUnit) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {x_, w, y});
    ops::add(e, {y, x_, y});
    ops::add(e, {y, y, out});
  });
  EXPECT_EQ(report.fusions, Names{"matmul+add*2: #0 #1 #2"});
}

TEST_F(Fuse, AnEpilogueDoesNotWriteWhatOtherTilesRead) {
  const Weight w = matrix(kWidth);
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp x = temp(e), h = temp(e), y = temp(e);
    norm(e, x_, x);
    norm(e, x, h);
    ops::matmul(e, {h, w, y});
    ops::add(e, {x, y, x});
    ops::add(e, {x, x_, x_});
  });
  EXPECT_EQ(report.fusions, Names{"rms_norm+matmul: #1 #2"});
  expect_miss(report,
              "#3 add does not join rms_norm+matmul at #1: #1 rms_norm.input and #3 add.output share memory");
  // The same through memory: the product reads whole rows of what the sum would write.
  const PlanReport memory = fused([&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {x_, w, y});
    ops::add(e, {x_, y, x_});
  });
  EXPECT_TRUE(memory.fusions.empty());
  expect_miss(memory, "#0 matmul.input and #1 add.output share memory, not unit by unit");
}

TEST_F(Fuse, NothingCrossesAFence) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth}), again = filled({kRows, kWidth});
  for (int fence = 0; fence < 3; ++fence) {
    const PlanReport report = fused([&](CommandEncoder& e) {
      const Temp h = temp(e), y = temp(e), z = temp(e);
      norm(e, x_, h);
      if (fence == 0) e.barrier();
      ops::matmul(e, {h, w, y});
      if (fence == 1) e.barrier();
      ops::matmul(e, {h, w, z});
      if (fence == 2) e.barrier();
      ops::add(e, {y, z, out});
    });
    EXPECT_EQ(report.fusions, fence == 0   ? Names{"matmul*2+add: #2 #3 #4"}
                              : fence == 1 ? Names{"matmul+add: #3 #4"}
                                           : Names{"rms_norm+matmul*2: #0 #1 #2"})
        << fence;
    expect_miss(report, fence == 0   ? "#0 rms_norm does not join matmul*2 at #2: #1 fence lies between"
                        : fence == 1 ? "#3 matmul does not join matmul at #1: #2 fence lies between"
                                     : "#4 add does not join rms_norm+matmul*2 at #0: #3 fence lies between");
  }
}

TEST_F(Fuse, NoPathLeavesAGroupAndComesBack) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e), h = temp(e), z = temp(e);
    ops::matmul(e, {x_, w, y});
    norm(e, y, h);
    ops::matmul(e, {h, w, z});
    ops::add(e, {y, z, out});  // reads y by unit, and z, which comes from y by a longer way
  });
  EXPECT_EQ(report.fusions, Names{"rms_norm+matmul+add: #1 #2 #3"});
}

TEST_F(Fuse, GroupsDoNotWaitForEachOther) {
  // Each product reads what the other's sum overwrites: either may take its sum, both would be a cycle.
  const Weight w = matrix(kWidth);
  const Buffer p = filled({kRows, kWidth}), q = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp a = temp(e), b = temp(e);
    ops::matmul(e, {p, w, a});
    ops::matmul(e, {q, w, b});
    ops::add(e, {a, a, q});
    ops::add(e, {b, b, p});
  });
  EXPECT_EQ(report.fusions, Names{"matmul+add: #0 #2"});
  expect_miss(report, "#3 add does not join matmul at #1: #0 matmul lies between");
}

TEST_F(Fuse, ConflictingCommandsBetweenCount) {
  const Weight w = matrix(kWidth);
  const Buffer state = filled({kRows, kWidth}), out = filled({kRows, kWidth}),
               other = filled({kRows, kWidth});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {state, w, y});
    ops::add(e, {other, other, state});  // overwrites what the product read
    ops::add(e, {y, state, out});
  });
  EXPECT_TRUE(report.fusions.empty());
  expect_miss(report, "#2 add does not join matmul at #0: #1 add lies between");
}

TEST_F(Fuse, RowsAndLiveCountsAreTheSame) {
  const Weight w = matrix(kWidth);
  const Buffer out = device_.buffer(DType::f32, {kRows, kWidth}).with_live_rows(other_count_);
  const Buffer x2 = device_.buffer(DType::f32, {kRows, kWidth}).with_live_rows(other_count_);
  const PlanReport counts = fused([&](CommandEncoder& e) {
    const Temp y = temp(e), z = e.temp(DType::f32, {kRows, kWidth}, other_count_);
    ops::matmul(e, {x_, w, y});
    ops::matmul(e, {x2, w, z});
    ops::add(e, {z, x2, out});
  });
  EXPECT_EQ(counts.fusions, Names{"matmul+add: #1 #2"});

  const Buffer plain = device_.buffer(DType::f32, {kRows, kWidth});
  const Buffer halves = device_.buffer(DType::f32, {2 * kRows, kWidth / 2});
  const PlanReport shapes = fused([&](CommandEncoder& e) {
    const Temp y = e.temp(DType::f32, {kRows, kWidth});
    ops::matmul(e, {plain, w, y});
    // As many elements, but of other rows.
    ops::add(e, {y.view({2 * kRows, kWidth / 2}), halves, halves});
  });
  EXPECT_TRUE(shapes.fusions.empty());
  expect_miss(shapes, "8 rows and 16 rows");
}

TEST_F(Fuse, LiveCountsAreTheSameWord) {
  const Weight w = matrix(kWidth);
  const Buffer counts = device_.buffer(DType::u32, {2});
  counts.span<uint32_t>()[0] = 5;
  counts.span<uint32_t>()[1] = 3;
  const Buffer five = counts.slice(0, 1), three = counts.slice(1, 1), again = counts.slice(0, 1);
  const Buffer x = filled({kRows, kWidth}), out = filled({kRows, kWidth}),
               other_out = filled({kRows, kWidth});
  const auto with = [](const Buffer& buffer, const Buffer& count) {
    const Buffer all = buffer.slice(0, kRows);
    return count ? all.with_live_rows(count) : all;
  };
  // Two products of one input, each of its own live rows.
  const auto products = [&](const Buffer& first, const Buffer& second) {
    return fused([&](CommandEncoder& e) {
      ops::matmul(e, {with(x, first), w, with(out, first)});
      ops::matmul(e, {with(x, second), w, with(other_out, second)});
    });
  };
  EXPECT_EQ(products(five, again).fusions, Names{"matmul*2: #0 #1"});
  EXPECT_EQ(products({}, {}).fusions, Names{"matmul*2: #0 #1"});
  for (const auto& [first, second] :
       {std::pair{five, three}, {three, five}, {five, other_count_}, {five, Buffer()}, {Buffer(), five}}) {
    const PlanReport report = products(first, second);
    EXPECT_TRUE(report.fusions.empty());
    expect_miss(report, "#1 matmul does not join matmul at #0: another live count");
  }
}

TEST_F(Fuse, UnitsThatDoNotDivideAreLeft) {
  const Weight w = matrix(kWide), gain = weight({32}, {Use::vector}), gain_12 = weight({12}, {Use::vector});
  const Buffer out = filled({kRows, kWide});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e, kWide), h = temp(e, kWide);
    ops::matmul(e, {x_, w, y});
    ops::rms_norm(e, {.input = y.view({kRows, 3, 32}), .weight = gain, .output = h.view({kRows, 3, 32})});
    ops::rms_norm(e, {.input = h.view({kRows, 8, 12}),
                      .weight = gain_12,
                      .output = out.view(DType::f32, {kRows, 8, 12}).with_live_rows(count_)});
  });
  EXPECT_EQ(report.fusions, Names{"matmul+rms_norm: #0 #1"});
  expect_miss(report, "#2 rms_norm has 8 units, which the 3 of #1 rms_norm do not divide");
}

TEST_F(Fuse, AUnitIsNotTheWholeWork) {
  constexpr int64_t kLong = 1024;
  const Weight w = matrix(kLong, 256), gain = weight({kLong}, {Use::vector});
  const Buffer x = filled({kRows, 256}), out = filled({kRows, kLong});
  const PlanReport report = fused([&](CommandEncoder& e) {
    const Temp y = temp(e, kLong);
    ops::matmul(e, {x, w, y});
    ops::rms_norm(e, {.input = y, .weight = gain, .output = out});
  });
  EXPECT_TRUE(report.fusions.empty());
  expect_miss(report, "one of 1 units would be too much of the work");
}

TEST_F(Fuse, OnlyWhatTheDeviceHasKernelsFor) {
  // A product whose kernel knows whole tiles only is left, with the reason, and takes nothing with it.
  std::vector<backend::Kernel> kernels = cpu_table();
  for (backend::Kernel& kernel : kernels) {
    if (kernel.op == &ops::silu_mul_schema) kernel.regions = false;
  }
  const Weight w = matrix(kWidth);
  CommandEncoder e = device_.encoder();
  const Temp a = temp(e), b = temp(e), c = temp(e), d = temp(e);
  ops::matmul(e, {x_, w, a});
  ops::matmul(e, {x_, w, b});
  ops::silu_mul(e, {a, b, c});
  ops::add(e, {a, b, d});
  ComputeGraph graph = e.finish();
  graph::expand(graph, graph::Mode::exact);
  const graph::FuseReport report = graph::fuse(graph, kernels, device_.info());
  EXPECT_EQ(report.fusions, Names{"matmul*2+add: #0 #1 #3"});
  ASSERT_EQ(report.misses.size(), 1u);
  EXPECT_NE(report.misses[0].find("#2 silu_mul does not join matmul*2 at #0: kernel silu_mul_f32"),
            std::string::npos)
      << report.misses[0];

  // Without any kernel nothing is lost either: the graph is what it was.
  CommandEncoder again = device_.encoder();
  const Temp y = temp(again);
  ops::matmul(again, {x_, w, y});
  ComputeGraph untouched = again.finish();
  graph::expand(untouched, graph::Mode::exact);
  EXPECT_TRUE(graph::fuse(untouched, {}, device_.info()).fusions.empty());
  ASSERT_EQ(untouched.commands.size(), 1u);
  EXPECT_EQ(untouched.commands[0].op, &ops::matmul_schema);
}

TEST_F(Fuse, AGroupReadsAndWritesWhatItsMembersDo) {
  const Weight w = matrix(kWidth);
  const Buffer out = filled({kRows, kWidth});
  CommandEncoder e = device_.encoder();
  const Temp h = temp(e), y = temp(e);
  norm(e, x_, h);
  ops::matmul(e, {h, w, y});
  ops::add(e, {y, x_, out});
  const auto [plan, report] = device_.plan(e.finish());
  ASSERT_EQ(plan.data().commands.size(), 1u);
  const backend::PlanCommand& command = plan.data().commands[0];
  std::vector<std::string> bound;
  for (uint32_t a = 0; a < command.args.count; ++a) {
    if (plan.data().args[command.args.first + a].view.bytes != 0)
      bound.push_back(backend::argument_title(plan.data(), command, a));
  }
  // The norm's output and the product's input have no memory.
  EXPECT_EQ(bound, (Names{"rms_norm.input", "rms_norm.weight", "matmul.weight", "matmul.output", "add.a",
                          "add.b", "add.output", "live rows", "scratch"}));
  EXPECT_EQ(backend::title(plan.data(), command), "rms_norm+matmul+add");
}

/// A Qwen3 layer, or some, with what surrounds them, from plain ops.
struct Layer {
  explicit Layer(Device opened = Device(backend::make_null(null_table()), ops::cpu_layouts(), {}),
                 uint32_t layers = 1)
      : device(std::move(opened)) {
    const format::ModelFolder folder = format::ModelFolder::open("models/tales-qwen3-4bit");
    const format::Json json = test::first_layers(folder.path(), layers);
    config = model::read_config(folder.path(), json);
    sizes.emplace(json);
    const model::FolderWeights weights(folder);
    model::WeightLoader loader(device, weights, nullptr);
    architecture = model::family_of(json).load(json, loader);
  }
  /// So many times the whole of it, one behind the other.
  ComputeGraph record(int64_t rows, uint32_t times = 1) {
    const model::KvCache cache(device, config, 1, 64);
    const model::Slots slots(device, {}, cache);
    const auto capacity = static_cast<uint32_t>(rows);
    const model::StepBlock step(device, {capacity, 1, capacity});
    const Buffer logits = device.buffer(DType::f32, {rows, config.vocab}).with_live_rows(step.live_outputs);
    CommandEncoder encoder = device.encoder();
    for (uint32_t i = 0; i < times; ++i) architecture->record(encoder, {step, slots, cache, logits, 64});
    ComputeGraph graph = encoder.finish();
    graph::expand(graph, graph::Mode::exact);
    return graph;
  }
  Device device;
  model::Config config;
  std::optional<model::DecoderSizes> sizes;
  std::unique_ptr<model::Architecture> architecture;
};

TEST(FuseLayer, IsWhatOneWouldFuseByHand) {
  Layer layer;
  for (const int64_t rows : {1, 64}) {
    const ComputeGraph plain = layer.record(rows);
    ComputeGraph fused = plain;
    const graph::FuseReport report = graph::fuse(fused, null_table(), layer.device.info());
    EXPECT_TRUE(report.misses.empty());

    struct Part {
      uint32_t command;
      uint32_t component;  // kNone: the prologue
    };
    const std::vector<std::vector<Part>> hand = {
        {{0, 0}},  // embedding
        {{1, kNone},
         {2, 0},
         {3, 1},
         {4, 1},
         {5, 0},  // norm, q, k, v, q norm
         {6, 1},
         {7, 0},
         {8, 1},
         {9, 1}},                                  // k norm, q rope, k rope, cache write
        {{10, 0}},                                 // attention
        {{11, 0}, {12, 0}},                        // o, residual
        {{13, kNone}, {14, 0}, {15, 0}, {16, 0}},  // norm, gate, up, silu_mul
        {{17, 0}, {18, 0}},                        // down, residual
        {{19, 0}},                                 // wanted rows
        {{20, kNone}, {21, 0}},                    // norm, head
    };
    const auto& c = *layer.sizes;
    const std::vector<uint32_t> units = {0,
                                         1,
                                         c.heads * c.head_dim,
                                         c.kv_heads * c.head_dim,
                                         c.kv_heads * c.head_dim,
                                         c.heads,
                                         c.kv_heads,
                                         c.heads,
                                         c.kv_heads,
                                         c.kv_heads,
                                         0,
                                         c.hidden,
                                         c.hidden,
                                         1,
                                         c.intermediate,
                                         c.intermediate,
                                         c.intermediate,
                                         c.hidden,
                                         c.hidden,
                                         0,
                                         1,
                                         c.vocab};
    ASSERT_EQ(fused.commands.size(), hand.size());
    for (size_t i = 0; i < hand.size(); ++i) {
      const graph::Command& command = fused.commands[i];
      if (hand[i].size() == 1) {
        EXPECT_EQ(command.op, plain.commands[hand[i][0].command].op);
        EXPECT_EQ(command.bindings.first, plain.commands[hand[i][0].command].bindings.first);
        continue;
      }
      ASSERT_EQ(command.members.count, hand[i].size()) << graph::title(fused, command);
      EXPECT_EQ(command.label, plain.commands[hand[i][0].command].label);
      for (size_t m = 0; m < hand[i].size(); ++m) {
        const graph::Member& member = fused.members[command.members.first + m];
        const graph::Command& expected = plain.commands[hand[i][m].command];
        EXPECT_EQ(member.command.op, expected.op);
        EXPECT_EQ(member.command.bindings.first, expected.bindings.first);
        EXPECT_EQ(member.command.constants.first, expected.constants.first);
        EXPECT_EQ(member.role, hand[i][m].component == kNone ? MemberRole::prologue : MemberRole::tile);
        EXPECT_EQ(member.component, hand[i][m].component);
        EXPECT_EQ(member.units, units[hand[i][m].command]);
      }
    }
    // Five commands and five levels for the layer; before it the embedding, behind it the rows and the head.
    const std::vector<uint32_t> levels = graph::derive_order(graph::accesses(fused)).levels;
    EXPECT_EQ(levels, (std::vector<uint32_t>{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(report.recorded_levels, 1u + 13u + 3u);
  }
}

TEST(FuseLayer, IsFiveCommandsAtAnyDepth) {
  // 240 layers are 4,320 commands: past the reach of a group, and with more of all that is alike than it tries.
  constexpr uint32_t kLayers = 6, kTimes = 40;
  Layer layers(Device(backend::make_null(null_table()), ops::cpu_layouts(), {}), kLayers);
  for (const int64_t rows : {1, 64}) {
    ComputeGraph graph = layers.record(rows, kTimes);
    const graph::FuseReport report = graph::fuse(graph, null_table(), layers.device.info());
    EXPECT_EQ(report.misses, std::vector<std::string>());
    EXPECT_EQ(report.fusions.size(), kTimes * (4 * kLayers + 1));
    EXPECT_EQ(graph.commands.size(), kTimes * (5 * kLayers + 3));
  }
}

TEST(FuseLayer, IsCheckedAndDumped) {
  Layer layer;
  PlanOptions options;
  options.check = true;
  const auto [plan, report] = layer.device.plan(layer.record(64), options);
  EXPECT_EQ(report.fusions.size(), 5u);
  EXPECT_EQ(report.commands, 8u);
  const backend::PlanCommand& command = plan.data().commands[1];
  EXPECT_EQ(backend::title(plan.data(), command), "rms_norm+matmul*3+rms_norm*2+rope*2+kv_write");
  // The checker sees through groups: without its edge to the embedding, the conflict has names.
  backend::PlanData cut = plan.data();
  cut.commands[1].deps.count = 0;
  const auto unordered = graph::check_order(cut);
  ASSERT_FALSE(unordered.empty());
  EXPECT_NE(unordered[0].reason.find("output and rms_norm.input share bytes"), std::string::npos)
      << unordered[0].reason;
}

TEST(FuseLayer, ValidateSeesWhatIsWrongWithAGroup) {
  const std::shared_ptr<backend::Backend> backend = backend::make_validate(backend::make_null(null_table()));
  Layer layer(Device(backend, ops::cpu_layouts(), {}));
  const auto [plan, report] = layer.device.plan(layer.record(64));
  backend::ExecutableOptions options;
  const backend::Allocation* arena = backend->allocate({plan.arena_bytes(), "arena"});
  options.arena = {arena, 0, plan.arena_bytes()};
  EXPECT_NO_THROW(backend->prepare(plan.data(), options));

  const auto refused = [&](const std::string& part, const std::function<void(backend::PlanData&)>& spoil) {
    backend::PlanData spoilt = plan.data();
    spoil(spoilt);
    try {
      backend->prepare(spoilt, options);
      ADD_FAILURE() << "accepted: " << part;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused("its group does not exist", [](backend::PlanData& p) { p.commands[1].group = 99; });
  refused("its members leave", [](backend::PlanData& p) { p.groups[0].members.count = 1000; });
  refused("its components leave", [](backend::PlanData& p) { p.groups[0].components.first = 1000; });
  refused("tiles of a block", [](backend::PlanData& p) { ++p.commands[1].launch.tiles_per_block; });
  refused("computes whole tiles only", [](backend::PlanData& p) {
    static backend::Kernel whole;
    whole = *p.members[1].kernel;
    whole.regions = false;
    p.members[1].kernel = &whole;
  });
  refused("its component does not exist", [](backend::PlanData& p) { p.members[1].component = 7; });
  refused("units: not those of its op", [](backend::PlanData& p) { ++p.members[1].units; });
  refused("a prologue without its value", [](backend::PlanData& p) { p.members[0].private_arg = kNone; });
  refused("its prologue and value do not agree", [](backend::PlanData& p) {
    p.members[0].role = MemberRole::tile;
    p.members[0].component = 0;
    p.members[0].private_arg = kNone;
    p.components[p.groups[0].components.first] = {1, 1};
    p.commands[1].launch.tiles_per_block = 1 + p.components[p.groups[0].components.first + 1].units;
    p.components[p.groups[0].components.first + 1].units_per_tile = 1;
  });
  refused("are not where its schema expects them", [](backend::PlanData& p) { ++p.members[2].args.first; });
  refused("not bound", [](backend::PlanData& p) { p.args[p.members[1].args.first + 2].view = {}; });
  refused("bound, and private to the group", [](backend::PlanData& p) {
    p.args[p.members[1].args.first].view = p.args[p.members[0].args.first].view;
  });
  backend->release(arena);
}

}  // namespace
}  // namespace refrain::null_tests

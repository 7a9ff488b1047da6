// A user's own kernels: registered for a device, chosen like built-in ones, run by it.
#include "refrain/device/registry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <functional>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/pool.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using test::refusal;

struct ScaleConstants {
  float factor = 1;
  uint32_t columns = 0;
};
constexpr ArgumentSpec kScaleArgs[] = {
    {.name = "input", .access = Access::in, .rows = true},
    {.name = "output", .access = Access::out, .rows = true, .in_place = 1}};
constexpr OpSchema kScale{.name = "scale", .args = kScaleArgs, .constants_bytes = sizeof(ScaleConstants)};

void scale_tiles(const TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<ScaleConstants>();
  for (size_t i = size_t{begin} * c.columns; i < size_t{end} * c.columns; ++i)
    args.arg<float>(1)[i] = c.factor * args.arg<float>(0)[i];
}

UserKernel scale_kernel(std::string name = "scale_f32") {
  return {.name = std::move(name), .op = &kScale, .entry = {nullptr, nullptr, scale_tiles}};
}

UserKernel scale_source(std::string text = "kernel scale() {}") {
  return {.name = "scale_source", .op = &kScale, .source = std::move(text), .source_entry = "scale"};
}

class Registry : public testing::Test {
 protected:
  static Device cpu() {
    backend::CpuOptions options;
    options.threads = 2;
    return Device(backend::make_validate(backend::make_cpu(options, kKernels)), {}, {});
  }
  void scale(CommandEncoder& encoder, Operand input, Operand output, float factor) {
    dispatch(encoder, kScale, std::array{input, output}, ScaleConstants{factor, 4});
  }
  std::string kernel_of(Device& device, const Buffer& x) {
    CommandEncoder encoder = device.encoder();
    scale(encoder, x, x, 2);
    return std::string(device.plan(encoder.finish()).first.data().commands[0].kernel->name);
  }

  Device device_ = cpu();
  Buffer x_ = device_.buffer(DType::f32, {64, 4});
};

TEST_F(Registry, AUsersKernelRunsWithItsOrderDerived) {
  device_.kernels().add(scale_kernel());
  const Buffer y = device_.buffer(DType::f32, {64, 4});
  for (float& value : x_.span<float>()) value = 3;
  CommandEncoder encoder = device_.encoder();
  const Temp t = encoder.temp(DType::f32, {64, 4});
  scale(encoder, x_, t, 2);
  scale(encoder, t, t, 5);
  scale(encoder, t, y, 7);
  device_.wait(encoder.commit({.label = "scale"}), std::chrono::seconds(10));
  for (const float value : y.span<float>()) EXPECT_EQ(value, 3.0f * 2 * 5 * 7);
}

TEST_F(Registry, ARowHasAllThatTheKernelSays) {
  UserKernel kernel = scale_kernel();
  kernel.numerics = "of mine";
  kernel.needs = uint64_t{1} << 40;
  kernel.prefetches = 0b1;
  device_.kernels().add(kernel);
  const auto table = device_.kernels().table();
  const backend::Kernel& row = table->front();
  EXPECT_EQ(row.name, kernel.name);
  EXPECT_EQ(row.op, kernel.op);
  EXPECT_EQ(row.numerics, kernel.numerics);
  EXPECT_EQ(row.needs, kernel.needs);
  EXPECT_EQ(row.prefetches, kernel.prefetches);
  EXPECT_EQ(static_cast<const backend::TileKernel*>(row.entry)->tiles, scale_tiles);
}

TEST_F(Registry, LiveRowsAreThoseOfTheSchema) {
  device_.kernels().add(scale_kernel());
  const Buffer count = device_.buffer(DType::u32, {1});
  count.span<uint32_t>()[0] = 3;
  for (float& value : x_.span<float>()) value = 1;
  CommandEncoder encoder = device_.encoder();
  const Buffer live = x_.with_live_rows(count);
  scale(encoder, live, live, 2);
  device_.wait(encoder.commit(), std::chrono::seconds(10));
  EXPECT_EQ(x_.span<float>()[11], 2);
  EXPECT_EQ(x_.span<float>()[12], 1);
}

TEST_F(Registry, WithoutAKernelThereIsNone) {
  EXPECT_EQ(refusal([&] { kernel_of(device_, x_); }).substr(0, 41),
            "[scale] device cpu: no kernel accepts inp");
  Device other = cpu();
  other.kernels().add(scale_kernel());
  EXPECT_NE(refusal([&] { kernel_of(device_, x_); }), "nothing was thrown")
      << "registered for another device";
  const Buffer of_other = other.buffer(DType::f32, {64, 4});
  EXPECT_EQ(kernel_of(other, of_other), "scale_f32");
}

TEST_F(Registry, TheFirstThatAcceptsIsTaken) {
  UserKernel narrow = scale_kernel("narrow"), future = scale_kernel("future");
  narrow.accepts = [](const OpCall& call) { return call.args[0].shape[0] == 1; };
  future.needs = uint64_t{1} << 63;
  device_.kernels().add(future);
  device_.kernels().add(narrow);
  device_.kernels().add(scale_kernel("wide"));
  EXPECT_EQ(kernel_of(device_, x_), "wide");
  EXPECT_EQ(kernel_of(device_, x_.slice(0, 1)), "narrow");
}

TEST_F(Registry, ALaunchThatCannotBeWalkedIsRefused) {
  static backend::Launch wanted;
  UserKernel kernel = scale_kernel();
  kernel.launch = [](const OpCall&, const backend::DeviceInfo&) { return wanted; };
  device_.kernels().add(kernel);
  const auto refused = [&](const backend::Launch& launch, const std::string& why) {
    wanted = launch;
    EXPECT_EQ(refusal([&] { kernel_of(device_, x_); }), "[scale] kernel scale_f32: launch: " + why);
  };
  refused({.rows = 64, .rows_per_block = 0}, "rows_per_block: expected at least 1, got 0");
  refused({.rows = 64, .tiles_per_block = 0}, "tiles_per_block: expected at least 1, got 0");
  refused({.rows = 64, .tiles_per_block = 1u << 26}, "tiles: expected fewer than 2^32 - 2, got 4294967296");
  refused({.rows = 64, .scratch_bytes = size_t{1} << 63},
          "scratch_bytes: expected what fits into memory, got 9223372036854775808");
  refused({.rows = 64, .row_scratch_bytes = 4}, "row_scratch_bytes: expected 0 without rows_prologue, got 4");
  wanted = {.rows = 64, .rows_per_block = 64, .scratch_bytes = 100};
  EXPECT_EQ(kernel_of(device_, x_), "scale_f32");
  UserKernel keeps = scale_kernel("keeps");
  keeps.accepts = [](const OpCall& call) { return call.args[0].shape[0] == 1; };
  keeps.launch = kernel.launch;
  keeps.entry.rows_prologue = [](const TileArgs&, uint32_t, uint32_t) {};
  Device other = cpu();
  other.kernels().add(keeps);
  const Buffer one = other.buffer(DType::f32, {1, 4});
  EXPECT_EQ(refusal([&] { kernel_of(other, one); }),
            "[scale] kernel keeps: launch: row_scratch_bytes: expected some for rows_prologue, got 0");
  wanted.row_scratch_bytes = size_t{1} << 47;
  EXPECT_EQ(refusal([&] { kernel_of(other, one); }),
            "[scale] kernel keeps: launch: row_scratch_bytes: expected what fits into memory, got "
            "140737488355328");
}

TEST_F(Registry, ABuiltInOpMayGetAnotherKernel) {
  const auto kernel_of_mix = [&] {
    const Buffer a = device_.buffer(DType::u32, {4});
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 4, 0, 4});
    return std::string(device_.plan(encoder.finish()).first.data().commands[0].kernel->name);
  };
  EXPECT_EQ(kernel_of_mix(), "mix");
  device_.kernels().add({.name = "my mix", .op = &kMix, .entry = {nullptr, nullptr, run_mix}});
  EXPECT_EQ(kernel_of_mix(), "my mix");
}

TEST_F(Registry, PlansKeepTheKernelsThatTheyChose) {
  for (float& value : x_.span<float>()) value = 3;
  Program program;
  {
    Device device = cpu();
    x_ = device.buffer(DType::f32, {64, 4});
    device.kernels().add(scale_kernel());
    CommandEncoder encoder = device.encoder();
    scale(encoder, x_, x_, 2);
    const auto plan = device.plan(encoder.finish()).first;
    UserKernel better = scale_kernel("better");
    better.op = &kMix;  // of another op; the table is a new one all the same
    device.kernels().add(better);
    program = device.prepare(plan);
    for (float& value : x_.span<float>()) value = 3;
    device.wait(device.submit(program), std::chrono::seconds(10));
    EXPECT_EQ(x_.span<float>()[7], 6);
  }
  EXPECT_EQ(program.plan().data().commands[0].kernel->name, "scale_f32") << "the device is gone";
}

TEST_F(Registry, ManyThreadsMayRegisterAndPlan) {
  device_.kernels().add(scale_kernel());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) {
        UserKernel kernel = scale_kernel("scale " + std::to_string(t) + " " + std::to_string(i));
        kernel.accepts = [](const OpCall&) { return false; };
        device_.kernels().add(kernel);
        EXPECT_EQ(kernel_of(device_, x_), "scale_f32");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(device_.kernels().table()->size(), std::size(kKernels) + 101);
}

TEST_F(Registry, Misuse) {
  device_.kernels().add(scale_kernel());
  const auto add = [&](const UserKernel& kernel) { return refusal([&] { device_.kernels().add(kernel); }); };
  UserKernel unnamed = scale_kernel(""), none = scale_kernel("x"), idle = scale_kernel("x");
  none.op = nullptr;
  idle.entry.tiles = nullptr;
  EXPECT_EQ(add(unnamed), "[kernels] name: expected one, got none");
  EXPECT_EQ(add(none), "[kernels] x: op: expected one, got none");
  EXPECT_EQ(add(idle), "[kernels] x: tiles: expected a function, got none");
  UserKernel classless = scale_kernel("x"), both = scale_kernel("x"), nameless_source = scale_source();
  classless.numerics.clear();
  both.source = "kernel";
  nameless_source.source_entry.clear();
  EXPECT_EQ(add(classless), "[kernels] x: numerics: expected a class, got none");
  EXPECT_EQ(add(both), "[kernels] x: expected tiles or source, got both");
  EXPECT_EQ(add(nameless_source), "[kernels] scale_source: source_entry: expected a name, got none");
  EXPECT_EQ(add(scale_kernel()), "[kernels] scale_f32: there is a kernel of this name");
  EXPECT_EQ(add(scale_kernel("mix")), "[kernels] mix: there is a kernel of this name");
  const auto of = [&](std::span<const ArgumentSpec> args, const char* name = "op") {
    OpSchema op;
    op.name = name;
    op.args = args;
    UserKernel kernel = scale_kernel("x");
    kernel.op = &op;
    return add(kernel);
  };
  const std::array nameless{ArgumentSpec{}};
  const std::array in_place_input{ArgumentSpec{.name = "a", .access = Access::in, .in_place = 2},
                                  ArgumentSpec{.name = "b"}};
  const std::array of_itself{ArgumentSpec{.name = "a", .access = Access::out, .in_place = 1}};
  const std::array beyond{ArgumentSpec{.name = "a", .access = Access::out, .in_place = 8}};
  const std::array of_output{ArgumentSpec{.name = "a", .access = Access::out},
                             ArgumentSpec{.name = "b", .access = Access::out, .in_place = 1}};
  const std::array odd{ArgumentSpec{.name = "a", .access = static_cast<Access>(9)}};
  const std::vector<ArgumentSpec> many(33, ArgumentSpec{.name = "a"});
  EXPECT_EQ(of({}, ""), "[kernels] x: op '': expected a name, got none");
  EXPECT_EQ(of(nameless), "[kernels] x: op 'op': argument 0: expected a name, got none");
  EXPECT_EQ(of(in_place_input), "[kernels] x: op 'op': a: in place: expected an output");
  EXPECT_EQ(of(of_itself), "[kernels] x: op 'op': a: in place: expected other arguments of the op");
  EXPECT_EQ(of(beyond), "[kernels] x: op 'op': a: in place: expected other arguments of the op");
  EXPECT_EQ(of(of_output), "[kernels] x: op 'op': b: in place of a: expected an input");
  EXPECT_EQ(of(odd), "[kernels] x: op 'op': a: expected in, out, inout or status, got 9");
  EXPECT_EQ(of(many), "[kernels] x: op 'op': expected at most 32 arguments, got 33");
  EXPECT_EQ(device_.kernels().table()->size(), std::size(kKernels) + 1);
}

/// Walks no tiles on the host; compiles what begins with "kernel".
class CompilingBackend final : public ControlledBackend {
 public:
  CompilingBackend() : ControlledBackend({}) {}

  const void* compile(const backend::KernelSource& source) override {
    if (!source.text.starts_with("kernel"))
      throw InvalidArgument("[kernels] " + std::string(source.name) + ": line 1: expected kernel");
    compiled.emplace_back(source.entry);
    return &compiled.back();
  }

  std::deque<std::string> compiled;
};

TEST_F(Registry, SourceIsCompiledByABackendThatCan) {
  const auto compiling = std::make_shared<CompilingBackend>();
  Device device(compiling, {}, {});
  device.kernels().add(scale_source());
  EXPECT_EQ(compiling->compiled, std::deque<std::string>{"scale"});
  EXPECT_NE(refusal([&] { device.kernels().add(scale_source()); }), "nothing was thrown")
      << "the name is taken";
  EXPECT_EQ(compiling->compiled.size(), 1u) << "what is refused is not compiled";
  const Buffer x = device.buffer(DType::f32, {64, 4});
  CommandEncoder encoder = device.encoder();
  scale(encoder, x, x, 2);
  const backend::Kernel& row = *device.plan(encoder.finish()).first.data().commands[0].kernel;
  EXPECT_EQ(row.name, "scale_source");
  EXPECT_EQ(row.entry, &compiling->compiled.front()) << "what the backend has made of it";
  EXPECT_FALSE(row.regions);

  const auto add = [&](const UserKernel& kernel) { return refusal([&] { device.kernels().add(kernel); }); };
  UserKernel other = scale_source("banana");
  other.name = "other";
  EXPECT_EQ(add(other), "[kernels] other: line 1: expected kernel");
  EXPECT_EQ(add(scale_kernel()),
            "[kernels] scale_f32: device controlled walks no C++ functions; expected source");
  EXPECT_EQ(device.kernels().table()->size(), 1u);
}

TEST_F(Registry, SourceIsRefusedWhereNothingCompiles) {
  const auto refused_by = [&](std::unique_ptr<backend::Backend> backend) {
    Device device(std::shared_ptr<backend::Backend>(std::move(backend)), {}, {});
    return refusal([&] { device.kernels().add(scale_source()); });
  };
  const std::string refused = " compiles no source; expected a C++ function";
  const auto cpu = [] { return backend::make_cpu({}, kKernels); };
  EXPECT_EQ(refused_by(cpu()), "[kernels] scale_source: device cpu" + refused);
  EXPECT_EQ(refused_by(backend::make_null(kKernels)), "[kernels] scale_source: device null" + refused);
  EXPECT_EQ(refused_by(backend::make_validate(cpu())), "[kernels] scale_source: device cpu" + refused);
  EXPECT_EQ(refused_by(backend::make_fault(cpu())), "[kernels] scale_source: device cpu" + refused);
  EXPECT_EQ(refused_by(backend::make_remote(cpu())), "[kernels] scale_source: device cpu" + refused);
}

TEST_F(Registry, DecoratorsPassSourceOn) {
  const std::unique_ptr<backend::Backend> decorated =
      backend::make_validate(backend::make_fault(backend::make_remote(std::make_unique<CompilingBackend>())));
  const auto* entry = static_cast<const std::string*>(decorated->compile({"k", "kernel", "main"}));
  EXPECT_EQ(*entry, "main");
}

TEST_F(Registry, MoreRowsThanALaunchCountsAreRefused) {
  device_.kernels().add(scale_kernel());
  CommandEncoder encoder = device_.encoder();
  const Shape shape{(int64_t{1} << 32) + 1, 1};
  const Temp first = encoder.temp(DType::u8, shape), second = encoder.temp(DType::u8, shape);
  const Buffer any = device_.buffer(DType::u8, {1});
  encoder.dispatch({&kPair, std::array{Operand(any), Operand(), Operand(first), Operand()}, {}});
  EXPECT_EQ(refusal([&] {
              scale(encoder, first, second, 1);
              (void)device_.plan(encoder.finish());
            }),
            "[scale] input: expected at most 4294967295 rows, got 4294967297");
}

// y = x + 1 through pointers, which no argument shows.
struct HiddenConstants {
  const float* from = nullptr;
  float* to = nullptr;
};
constexpr OpSchema kHidden{
    .name = "hidden", .args = {}, .constants_bytes = sizeof(HiddenConstants), .unknown_access = true};
void hidden_tiles(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<HiddenConstants>();
  for (size_t i = 0; i < 256; ++i) c.to[i] = c.from[i] + 1;
}

class UnknownAccess : public Registry {
 protected:
  UnknownAccess() {
    device_.kernels().add(scale_kernel());
    device_.kernels().add({.name = "hidden", .op = &kHidden, .entry = {nullptr, nullptr, hidden_tiles}});
    float* x = x_.span<float>().data();
    std::fill_n(x, 256, 3.0f);
    hidden_ = {y_.span<float>().data(), z_.span<float>().data()};
  }
  Program program(uint32_t queue, const std::function<void(CommandEncoder&)>& record) {
    CommandEncoder encoder = device_.encoder();
    record(encoder);
    PrepareOptions options;
    options.queue = queue;
    return device_.prepare(device_.plan(encoder.finish()).first, options);
  }
  void hide(CommandEncoder& encoder) const { dispatch(encoder, kHidden, std::array<Operand, 0>{}, hidden_); }

  Buffer y_ = device_.buffer(DType::f32, {64, 4}), z_ = device_.buffer(DType::f32, {64, 4}),
         w_ = device_.buffer(DType::f32, {64, 4});
  HiddenConstants hidden_;
};

TEST_F(UnknownAccess, IsAFenceInARecording) {
  const Program step = program(0, [&](CommandEncoder& encoder) {
    scale(encoder, x_, y_, 2);
    hide(encoder);
    scale(encoder, z_, w_, 10);
  });
  std::vector<backend::CommandKind> kinds;
  for (const backend::PlanCommand& command : step.plan().data().commands) kinds.push_back(command.kind);
  using enum backend::CommandKind;
  EXPECT_EQ(kinds, (std::vector{kernel, fence, kernel, fence, kernel}));
  for (int i = 0; i < 100; ++i) {
    device_.wait(device_.submit(step), std::chrono::seconds(10));
    for (const float value : w_.span<float>()) ASSERT_EQ(value, 70);
    for (float& value : w_.span<float>()) value = 0;
    std::fill_n(hidden_.to, 256, 0.0f);
  }
  const Counters before = device_.counters();
  device_.wait(device_.submit(step), std::chrono::seconds(10));
  EXPECT_EQ(device_.counters().fences_submitted, before.fences_submitted + 2);
}

TEST_F(UnknownAccess, RunsBesideNoOtherQueue) {
  const Program hides = program(0, [&](CommandEncoder& encoder) { hide(encoder); });
  const Program writes = program(1, [&](CommandEncoder& encoder) { scale(encoder, x_, y_, 2); });
  const Program reads = program(2, [&](CommandEncoder& encoder) { scale(encoder, z_, w_, 10); });
  const Point host = device_.host_point();
  device_.submit(writes, {}, std::array{host});
  const Point hidden = device_.submit(hides);
  const Point last = device_.submit(reads);
  EXPECT_EQ(device_.counters().waits_derived, 2u);
  EXPECT_NE(refusal([&] { (void)z_.span<const float>(); }), "nothing was thrown") << "it may be written";
  EXPECT_FALSE(device_.reached(hidden));
  device_.signal(host);
  device_.wait(last, std::chrono::seconds(10));
  for (const float value : w_.span<float>()) EXPECT_EQ(value, 70);
}

TEST_F(UnknownAccess, CannotKnowMemoryThatIsMadeLater) {
  const Program hides = program(0, [&](CommandEncoder& encoder) { hide(encoder); });
  const Program names = program(0, [&](CommandEncoder& encoder) {
    hide(encoder);
    scale(encoder, x_, y_, 2);
  });
  const Point host = device_.host_point();
  device_.submit(hides, {}, std::array{host});
  const Buffer young = device_.buffer(DType::f32, {4});
  BufferPool pool(device_);
  EXPECT_EQ(young.span<float>().size(), 4u);
  EXPECT_EQ(pool.buffer(DType::f32, {4}).span<float>().size(), 4u);
  device_.synchronize(young, std::chrono::milliseconds(1));
  alignas(64) std::array<float, 4> memory{};
  const Buffer imported = device_.import_memory(memory.data(), DType::f32, {4}, nullptr);
  EXPECT_NE(refusal([&] { (void)imported.span<float>(); }), "nothing was thrown") << "it may have known it";
  EXPECT_NE(refusal([&] { (void)z_.span<float>(); }), "nothing was thrown");
  device_.submit(names);
  EXPECT_NE(refusal([&] { (void)young.span<float>(); }), "nothing was thrown")
      << "submitted after it was made";
  device_.signal(host);
  device_.synchronize(young, std::chrono::seconds(10));
}

TEST_F(UnknownAccess, ARefusedDispatchLeavesNoFence) {
  CommandEncoder encoder = device_.encoder();
  EXPECT_NE(refusal([&] { encoder.dispatch({&kHidden, {}, {}}); }), "nothing was thrown");
  EXPECT_TRUE(encoder.finish().commands.empty());
}

}  // namespace
}  // namespace refrain::null_tests

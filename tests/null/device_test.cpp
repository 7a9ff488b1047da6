// The user's device: prepare, submit, points, lifetimes and counters, over backends that compute nothing.
#include "refrain/device/device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "refrain/core/mapped_file.h"
#include "refrain/format/plain.h"
#include "refrain/format/test_folder.h"
#include "refrain/ops/layouts.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

class DeviceTest : public testing::Test {
 protected:
  /// a -> temp -> b, a fence, b -> b: three commands that run and an arena of 64 bytes.
  ComputeGraph record(Device& device, const Buffer& a, const Buffer& b) {
    CommandEncoder encoder = device.encoder();
    const Temp t = encoder.temp(DType::u32, {16});
    const MixConstants c{1, 16, 0, 16};
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(t)}, c);
    dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(b)}, c);
    encoder.barrier();
    dispatch(encoder, kMix, std::array{Operand(b), Operand(), Operand(b)}, c);
    return encoder.finish();
  }
  Plan plan() { return device_.plan(record(device_, a_, b_)).first; }
  Program program() { return device_.prepare(plan()); }

  std::shared_ptr<ControlledBackend> backend_ = std::make_shared<ControlledBackend>(kKernels);
  Device device_{backend_, {}, {}};
  Device other_ = null_device();
  Buffer a_ = device_.buffer(DType::u32, {16}), b_ = device_.buffer(DType::u32, {16});
};

TEST_F(DeviceTest, MisuseOfBuffersAndOfTheDevice) {
  EXPECT_EQ(refusal([&] {
              device_.buffer(DType::f32, {0, 3}, "x");
            }),
            "[buffer] x: expected elements of a known size, got f32 [0, 3]");
  EXPECT_EQ(refusal([&] { device_.buffer(DType::activation, {3}, "x"); }),
            "[buffer] x: expected elements of a known size, got activation [3]");
  EXPECT_EQ(refusal([&] { device_.buffer(DType::f64, {int64_t{1} << 61}, "x"); }),
            "[buffer] x: [2305843009213693952] is too large");
  EXPECT_EQ(refusal<DeviceError>([&] { device_.buffer(DType::u8, {int64_t{1} << 41}); }),
            "controlled: out of memory");
  EXPECT_EQ(refusal([&] { Device(nullptr, {}, {}); }), "[device] backend: expected one, got none");
  const Buffer x = device_.buffer(DType::f32, {4}, "x");
  EXPECT_EQ(refusal([&] { device_.write(x, std::vector<float>(3)); }),
            "[write] 'x': expected 16 bytes, got 12");
  EXPECT_EQ(refusal([&] { device_.write(x, std::vector<uint32_t>(4)); }),
            "[write] 'x': expected elements of f32, got u32");
  EXPECT_EQ(refusal([&] { (void)device_.read<uint32_t>(x); }),
            "[read] 'x': expected elements of f32, got u32");
  Device moved = device_, taken = std::move(moved);
  const std::string gone = "[device] expected an open device, got one that was moved from";
  EXPECT_EQ(refusal([&] { moved.info(); }), gone);                                   // NOLINT
  EXPECT_EQ(refusal([&] { moved.memory(); }), gone);                                 // NOLINT
  EXPECT_EQ(refusal([&] { moved.counters(); }), gone);                               // NOLINT
  EXPECT_EQ(refusal([&] { moved.buffer(DType::u8, {1}); }), gone);                   // NOLINT
  EXPECT_EQ(refusal([&] { moved.encoder(); }), gone);                                // NOLINT
  EXPECT_EQ(refusal([&] { moved.plan({}); }), gone);                                 // NOLINT
  EXPECT_EQ(refusal([&] { moved.prepare({}); }), gone);                              // NOLINT
  EXPECT_EQ(refusal([&] { moved.submit({}); }), gone);                               // NOLINT
  EXPECT_EQ(refusal([&] { moved.wait({}); }), gone);                                 // NOLINT
  EXPECT_EQ(refusal([&] { (void)moved.reached({}); }), gone);                        // NOLINT
  EXPECT_EQ(refusal([&] { moved.host_point(); }), gone);                             // NOLINT
  EXPECT_EQ(refusal([&] { moved.signal({}); }), gone);                               // NOLINT
  EXPECT_EQ(refusal([&] { moved.kernels(); }), gone);                                // NOLINT
  EXPECT_EQ(refusal([&] { moved.synchronize(a_); }), gone);                          // NOLINT
  EXPECT_EQ(refusal([&] { moved.write(a_, std::span<const std::byte>()); }), gone);  // NOLINT
  EXPECT_EQ(refusal([&] { (void)moved.read<uint32_t>(a_); }), gone);                 // NOLINT
  EXPECT_EQ(refusal([&] { moved.pack({}, {Use::vector}); }), gone);                  // NOLINT
  EXPECT_EQ(refusal([&] { (void)moved.timestamps_ns(program()); }), gone);           // NOLINT
}

TEST_F(DeviceTest, PackRefusesWhatNoLayoutServes) {
  TensorSource source;
  source.name = "w";
  source.shape = {2, 3};
  EXPECT_EQ(refusal([&] { device_.pack(source, {Use::matvec}); }), "[pack] w: expected a format, got none");
  source.format = &format::plain(DType::f32);
  EXPECT_EQ(refusal([&] { device_.pack(source, {Use::matvec}); }),
            "[pack] w: device controlled has no layout for f32[2, 3] with the uses asked for");
  static constexpr backend::WeightLayout kLayouts[] = {
      {"plain", [](const backend::WeightInfo&, Uses) { return true; },
       [](const backend::WeightInfo&) { return size_t{24}; },
       [](const TensorSource&, const backend::WeightInfo&, backend::RowRange, const backend::PackedBytes&) {},
       nullptr, true}};
  Device device(backend_, kLayouts, {});
  EXPECT_EQ(refusal([&] { device.pack(source, {Use::matvec}); }), "[pack] w: expected segments, got none");
  const std::array<std::byte, 24> bytes{};
  source.segments.push_back({DType::f32, {2, 3}, bytes});
  EXPECT_FALSE(device.pack(source, {Use::matvec}).in_place()) << "there is no file to use in place";
  Device far(std::make_shared<ControlledBackend>(kKernels, false), kLayouts, {});
  EXPECT_EQ(refusal([&] { far.buffer(DType::u8, {1}, "x").host_span(); }),
            "[buffer] span: 'x' is memory of device controlled that the host cannot reach in place: expected "
            "Device::write and Device::read, or a buffer of MemoryKind::host");
}

TEST_F(DeviceTest, OnlyTheModeFastIsGivenItsLayoutsAndKernels) {
  constexpr auto layout = [](std::string_view name, uint64_t needs) {
    return backend::WeightLayout{
        .name = name,
        .accepts = [](const backend::WeightInfo&, Uses) { return true; },
        .packed_bytes = [](const backend::WeightInfo&) { return size_t{24}; },
        .pack = [](const TensorSource&, const backend::WeightInfo&, backend::RowRange,
                   const backend::PackedBytes& packed) { (void)packed(0, 24); },
        .needs = needs};
  };
  constexpr uint64_t kLacking = uint64_t{1} << 40;
  const backend::WeightLayout layouts[] = {layout("lacking", backend::kFeatureFast | kLacking),
                                           layout("rounded", backend::kFeatureFast), layout("whole", 0)};
  std::vector<backend::Kernel> kernels(std::begin(kKernels), std::end(kKernels));
  const backend::Kernel mix = *std::ranges::find(kernels, std::string_view("mix"), &backend::Kernel::name);
  for (const char* name : {"mix_fast", "mix_lacking"}) {
    backend::Kernel row = mix;
    row.name = name;
    row.needs = backend::kFeatureFast | (std::string_view(name) == "mix_lacking" ? kLacking : 0);
    kernels.insert(kernels.begin(), row);
  }
  Device device(std::make_shared<ControlledBackend>(kernels), layouts, {});
  const std::array<std::byte, 24> bytes{};
  const TensorSource source = format::plain_tensor("w", DType::f32, {2, 3}, bytes);
  for (const auto& [mode, layout_name, kernel_name] :
       {std::tuple{graph::Mode::exact, "whole", std::string_view(mix.name)},
        std::tuple{graph::Mode::fast, "rounded", std::string_view("mix_fast")}}) {
    EXPECT_EQ(device.pack(source, {Use::matvec}, {.mode = mode}).state()->layout->name, layout_name);
    CommandEncoder encoder = device.encoder();
    const Temp value = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(device.buffer(DType::u32, {16})), Operand(), Operand(value)},
             MixConstants{1, 16, 0, 16});
    const Plan plan = device.plan(encoder.finish(), {.mode = mode}).first;
    EXPECT_EQ(plan.data().commands[0].kernel->name, kernel_name);
  }
}

// Of two parts the helper's ends last: it waits until this thread has told of its own, which waits until the other is
// begun.
TEST_F(DeviceTest, PackingTellsItsEndWhicheverThreadIsTheLast) {
  static std::atomic<bool> begun, told;
  static std::thread::id caller;
  begun = told = false;
  caller = std::this_thread::get_id();
  constexpr size_t kBytes = size_t{8} << 20;
  const backend::WeightLayout layouts[] = {
      {.name = "halves",
       .accepts = [](const backend::WeightInfo&, Uses) { return true; },
       .packed_bytes = [](const backend::WeightInfo&) { return kBytes; },
       .pack =
           [](const TensorSource&, const backend::WeightInfo&, backend::RowRange,
              const backend::PackedBytes&) {
             const bool here = std::this_thread::get_id() == caller;
             if (!here) begun = true;
             EXPECT_TRUE(test::eventually([&] { return here ? begun.load() : told.load(); }));
           }}};
  Device device(backend_, layouts, {.threads = 2, .log = {}});
  const std::array<std::byte, 24> bytes{};
  using Calls = std::vector<std::pair<size_t, size_t>>;
  Calls calls;
  device.pack(format::plain_tensor("w", DType::f32, {2, 3}, bytes), {Use::matvec},
              {.progress = [&](size_t done_bytes, size_t packed_bytes) {
                calls.emplace_back(done_bytes, packed_bytes);
                told = true;
              }});
  EXPECT_EQ(calls, (Calls{{kBytes / 2, kBytes}, {kBytes, kBytes}}));
}

// A file's bytes serve as they are when the layout takes them as stored, they lie in the file and are aligned; else they
// are copied.
TEST_F(DeviceTest, OnlyAlignedWeightsOfAFileAreUsedInPlace) {
  const format::TestFolder folder;
  std::string content(64, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i);
  folder.write("weights", content);
  const auto file = MappedFile::open(folder.path() / "weights");
  const auto source = [&](std::span<const std::byte> bytes, const Shape& shape = {2, 3}) {
    TensorSource made = format::plain_tensor("w", DType::f32, shape, bytes);
    made.file = file;
    return made;
  };
  Device device(backend_, ops::cpu_layouts(), {});
  for (const size_t offset_bytes : {0u, 1u, 2u, 4u, 8u, 12u, 36u, 40u}) {
    const Weight weight = device.pack(source(file->bytes().subspan(offset_bytes, 24)), {Use::gather});
    EXPECT_EQ(weight.in_place(), offset_bytes % 8 == 0) << offset_bytes;
    EXPECT_EQ(weight.name(), "w");
    const Weight::State& state = *weight.state();
    const auto* bytes = static_cast<const std::byte*>(state.memory->allocation().host) + state.offset_bytes;
    EXPECT_EQ(std::memcmp(bytes, content.data() + offset_bytes, 24), 0) << offset_bytes;
  }
  EXPECT_FALSE(device.pack(source(file->bytes().subspan(8, 24), {6}), {Use::vector}).in_place())
      << "its layout is another";
  EXPECT_NE(refusal([&] { device.pack(source(file->bytes().subspan(8, 32)), {Use::gather}); }),
            "nothing was thrown")
      << "more bytes than the weight has";
  // Not of the file, one before and one behind it where the system maps files between a program and its stack.
  alignas(8) static const std::array<std::byte, 24> of_the_program{};
  alignas(8) const std::array<std::byte, 24> of_the_stack{};
  EXPECT_FALSE(device.pack(source(of_the_program), {Use::gather}).in_place());
  EXPECT_FALSE(device.pack(source(of_the_stack), {Use::gather}).in_place());
}

TEST_F(DeviceTest, MisuseOfPrepare) {
  const Plan made = plan();
  ASSERT_EQ(made.arena_bytes(), 64u);
  const Buffer big = device_.buffer(DType::u8, {256}), small = device_.buffer(DType::u8, {63});
  const Buffer foreign = other_.buffer(DType::u8, {256});
  const auto with_arena = [&](Buffer arena) {
    return refusal([&] { device_.prepare(made, {.queue = 0, .arena = arena, .timestamps = false}); });
  };
  EXPECT_EQ(with_arena(small), "[prepare] arena: expected at least 64 bytes, got 63");
  EXPECT_EQ(with_arena(foreign), "[prepare] arena: expected a buffer of this device, got another device's");
  EXPECT_EQ(with_arena(big.slice(32, 64)), "[prepare] arena: expected an offset aligned to 64, got 32");
  EXPECT_EQ(with_arena(big.slice(192, 64)), "nothing was thrown");
  EXPECT_EQ(with_arena(a_),
            "[prepare] arena: expected memory of its own, got a buffer that a command is bound to");
  EXPECT_EQ(refusal([&] { device_.prepare(made, {.queue = 2, .arena = {}, .timestamps = false}); }),
            "[prepare] queue: expected less than 2, got 2");
  EXPECT_EQ(refusal([&] { device_.prepare({}); }), "[prepare] plan: expected a plan, got none");
  EXPECT_EQ(refusal([&] { other_.prepare(made); }),
            "[prepare] plan: expected one of this device, got another's");
  EXPECT_EQ(refusal([&] { other_.plan(record(device_, a_, b_)); }),
            "[plan] graph: expected one recorded on this device, got another's");
}

TEST_F(DeviceTest, ProgramsShareAnArena) {
  const Buffer arena = device_.buffer(DType::u8, {256}).slice(64, 128);
  const Program first = device_.prepare(plan(), {.queue = 1, .arena = arena, .timestamps = false});
  EXPECT_EQ(backend_->prepared.arena.allocation, arena.device_view().allocation);
  EXPECT_EQ(backend_->prepared.arena.offset_bytes, 64u);
  EXPECT_EQ(backend_->prepared.queue, 1u);
  const uint64_t allocations = device_.counters().allocations;
  const Program second = device_.prepare(plan(), {.queue = 1, .arena = arena, .timestamps = true});
  EXPECT_EQ(backend_->prepared.arena.allocation, arena.device_view().allocation);
  EXPECT_TRUE(backend_->prepared.timestamps);
  EXPECT_EQ(device_.counters().allocations, allocations);
  device_.prepare(plan());
  EXPECT_EQ(device_.counters().allocations, allocations + 1) << "an arena of its own";
}

TEST_F(DeviceTest, CommitsOfAQueueShareAnArenaThatGrows) {
  const auto arena = [&](uint32_t queue, size_t temps) {
    CommandEncoder encoder = device_.encoder();
    const MixConstants c{1, 16, 0, 16};
    std::vector<Temp> values;
    for (size_t i = 0; i < temps; ++i) {
      values.push_back(encoder.temp(DType::u32, {16}));
      dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(values.back())}, c);
    }
    for (const Temp& value : values)
      dispatch(encoder, kMix, std::array{Operand(value), Operand(), Operand(b_)}, c);
    CommitOptions options;
    options.queue = queue;
    options.plan.fuse = false;
    encoder.commit(options);
    EXPECT_EQ(backend_->prepared.arena.bytes, temps * 64);
    return backend_->prepared.arena.allocation;
  };
  const uint64_t before = device_.counters().allocations;
  const backend::Allocation* const first = arena(0, 4);
  EXPECT_EQ(arena(0, 4), first);
  EXPECT_EQ(arena(0, 2), first);
  EXPECT_EQ(device_.counters().allocations, before + 1);
  EXPECT_NE(arena(1, 1), first) << "queues run at the same time";
  const backend::Allocation* const second = arena(0, 5);
  EXPECT_NE(second, first);
  EXPECT_EQ(second->bytes, 8u * 64) << "twice, so that growing a little each time costs little";
  EXPECT_EQ(arena(0, 8), second);
  EXPECT_EQ(device_.counters().allocations, before + 3);
  // Where there is no room to grow, what is needed may fit.
  backend_->at_allocate = [] { throw DeviceError("controlled: full"); };
  EXPECT_EQ(arena(0, 9)->bytes, 9u * 64);
  EXPECT_EQ(backend_->at_allocate, nullptr);
}

TEST_F(DeviceTest, UpdatesArriveInOrder) {
  const Program made = program();
  for (const size_t count : {0u, 1u, 8u, 9u, 100u}) {
    backend_->updates.clear();
    std::vector<uint32_t> values(count);
    std::vector<Update> updates;
    for (size_t i = 0; i < count; ++i) {
      values[i] = static_cast<uint32_t>(i * 7);
      updates.push_back({a_.slice(static_cast<int64_t>(i % 16), 1), std::as_bytes(std::span(&values[i], 1))});
    }
    device_.submit(made, updates);
    ASSERT_EQ(backend_->updates.size(), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(backend_->updates[i].first.offset_bytes, i % 16 * 4);
      EXPECT_EQ(std::memcmp(backend_->updates[i].second.data(), &values[i], 4), 0);
    }
  }
}

TEST_F(DeviceTest, MisuseOfSubmit) {
  const Program made = program();
  const uint32_t value = 1;
  const auto bytes = std::as_bytes(std::span(&value, 1));
  const Buffer foreign = other_.buffer(DType::u32, {1});
  const Update long_one{a_, bytes}, none{{}, bytes}, of_other{foreign, bytes};
  const auto submit = [&](const Update& update) {
    return refusal([&] { device_.submit(made, std::span(&update, 1)); });
  };
  EXPECT_EQ(submit(long_one), "[submit] update 0: expected 64 bytes, got 4");
  EXPECT_EQ(submit(none), "[submit] update 0: expected 0 bytes, got 4");
  EXPECT_EQ(submit(of_other), "[submit] update 0: expected a buffer of this device");
  EXPECT_EQ(submit({Buffer(), {}}), "[submit] update 0: expected 0 bytes, got 0");
  EXPECT_EQ(refusal([&] { device_.submit({}); }), "[submit] program: expected a prepared program, got none");
  EXPECT_EQ(refusal([&] { other_.submit(made); }),
            "[submit] program: expected one of this device, got another's");
  EXPECT_EQ(device_.counters().submissions, 0u);
  backend_->refuse_next_submit();
  EXPECT_EQ(refusal<DeviceError>([&] { device_.submit(made); }), "controlled: refused");
  EXPECT_EQ(device_.counters().submissions, 0u);
  EXPECT_EQ(device_.submit(made).value, 1u) << "the device lives";
}

TEST_F(DeviceTest, Points) {
  const Program made = program();
  const Point first = device_.submit(made), second = device_.submit(made), host = device_.host_point();
  EXPECT_LT(first.value, second.value);
  EXPECT_FALSE(device_.reached(first));
  EXPECT_EQ(refusal<TimeoutError>([&] { device_.wait(second, 2ms); }),
            "[wait] queue 0 has not completed submission 2 within 2 ms");
  EXPECT_EQ(backend_->live_programs(), 1u) << "a timeout frees nothing";
  backend_->complete(0, 1);
  EXPECT_TRUE(device_.reached(first));
  EXPECT_FALSE(device_.reached(second));
  device_.wait(first, 0ns);

  const std::array waits{first, host};
  device_.submit(made, {}, waits);
  ASSERT_EQ(backend_->waits.size(), 2u);
  EXPECT_EQ(backend_->waits[1].queue, backend::kHostQueue);
  EXPECT_FALSE(device_.reached(host));
  std::thread signaller([&] { device_.signal(host); });
  device_.wait(host, 10s);
  signaller.join();
  EXPECT_TRUE(device_.reached(host));
  EXPECT_GT(device_.host_point().value, host.value);
}

// A point that is given spares the one derived on the same queue only if it comes no earlier.
TEST_F(DeviceTest, AnEarlierPointDoesNotStandForALaterOne) {
  const Buffer c = device_.buffer(DType::u32, {16});
  const auto mix = [&](const Buffer& from, const Buffer& to, uint32_t queue) {
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kMix, std::array{Operand(from), Operand(), Operand(to)}, MixConstants{1, 16, 0, 16});
    return device_.prepare(device_.plan(encoder.finish()).first, {.queue = queue, .arena = {}});
  };
  const Program writes = mix(a_, b_, 1), reads = mix(b_, c, 0), apart = mix(a_, a_, 1);
  device_.submit(writes);
  const Point first = device_.submit(writes), second = device_.submit(writes), later = device_.submit(apart);
  std::vector<Point> many;
  for (int i = 0; i < 40; ++i) many.push_back(device_.host_point());
  const Point host = many.back();  // its value is greater than any of the queue's
  const auto waits_of = [&](std::vector<Point> given) {
    const uint64_t before = device_.counters().waits_derived;
    device_.submit(reads, {}, given);
    EXPECT_EQ(device_.counters().waits_derived - before, backend_->after.size());
    EXPECT_EQ(backend_->waits.size(), given.size());
    std::vector<std::pair<uint32_t, uint64_t>> waits;
    for (const auto* points : {&backend_->waits, &backend_->after}) {
      for (const backend::Point& point : *points) waits.emplace_back(point.queue, point.value);
    }
    return waits;
  };
  using Waits = std::vector<std::pair<uint32_t, uint64_t>>;
  const Waits::value_type derived{1, second.value}, of_host{backend::kHostQueue, host.value};
  EXPECT_EQ(waits_of({}), Waits{derived});
  EXPECT_EQ(waits_of({first}), (Waits{{1, first.value}, derived}));
  EXPECT_EQ(waits_of({second}), Waits{derived});
  EXPECT_EQ(waits_of({first, second}), (Waits{{1, first.value}, derived}));
  EXPECT_EQ(waits_of({later}), (Waits{{1, later.value}}));
  EXPECT_EQ(waits_of({host}), (Waits{of_host, derived}));
  // The last of more than are kept without an allocation.
  const Waits waits = waits_of(many);
  ASSERT_EQ(waits.size(), many.size() + 1);
  for (size_t i = 0; i < many.size(); ++i) EXPECT_EQ(waits[i].second, many[i].value);
  EXPECT_EQ(waits.back(), derived);
  // What has completed is waited for no more, and what comes right behind it still is.
  backend_->complete(1, first.value);
  EXPECT_EQ(waits_of({}), Waits{derived});
  backend_->complete(1, second.value);
  EXPECT_EQ(waits_of({}), Waits{});
}

TEST_F(DeviceTest, SynchronizeHasOneTimeoutForAllQueues) {
  const auto submit = [&](uint32_t queue) {
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(queue == 0 ? b_ : a_)},
             MixConstants{1, 16, 0, 16});
    return encoder.commit({.label = "uses a", .queue = queue});
  };
  for (const uint32_t queue : {0u, 1u}) submit(queue);
  backend_->at_wait = [&](const backend::Point& point) {
    std::this_thread::sleep_for(20ms);
    backend_->complete(point.queue, point.value);
  };
  device_.synchronize(a_, 20s);
  ASSERT_EQ(backend_->timeouts.size(), 2u);
  for (const uint32_t queue : {0u, 1u}) {
    EXPECT_EQ(backend_->timeouts[queue].first.queue, queue);
    EXPECT_LE(backend_->timeouts[queue].second, 20s - queue * 20ms);
  }
}

// What an update writes is written by its submission as what its program writes is.
TEST_F(DeviceTest, AReaderOnAnotherQueueWaitsForAnUpdate) {
  const auto mix = [&](const Buffer& from, const Buffer& to, uint32_t queue) {
    CommandEncoder encoder = device_.encoder();
    dispatch(encoder, kMix, std::array{Operand(from), Operand(), Operand(to)}, MixConstants{1, 16, 0, 16});
    return device_.prepare(device_.plan(encoder.finish()).first, {.queue = queue, .arena = {}});
  };
  const Buffer c = device_.buffer(DType::u32, {16}), d = device_.buffer(DType::u32, {16}),
               low = device_.buffer(DType::u32, {32}), high = low.slice(16, 16);
  const Program apart = mix(a_, b_, 1), reads = mix(c, d, 0), reads_high = mix(high, d, 0);
  const uint32_t value = 1;
  const auto bytes = std::as_bytes(std::span(&value, 1));
  const Update to_c{c.slice(3, 1), bytes}, to_last{low.slice(15, 1), bytes},
      to_first{low.slice(16, 1), bytes};
  device_.submit(apart, std::span(&to_c, 1));
  device_.submit(apart, std::span(&to_last, 1));
  device_.submit(reads_high);
  EXPECT_EQ(backend_->after.size(), 0u) << "its bytes end where those that are read begin";
  device_.submit(reads);
  ASSERT_EQ(backend_->after.size(), 1u);
  EXPECT_EQ(backend_->after[0].queue, 1u);
  EXPECT_EQ(backend_->after[0].value, 1u);
  device_.submit(apart, std::span(&to_first, 1));
  device_.submit(reads_high);
  ASSERT_EQ(backend_->after.size(), 1u);
  EXPECT_EQ(backend_->after[0].value, 3u);
}

TEST_F(DeviceTest, AFailedSubmissionThrowsFromWait) {
  const Point point = device_.submit(program());
  backend_->fail(0, point.value);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(refusal<DeviceError>([&] { device_.wait(point, 1s); }),
              "[submission] 1 of queue 0: controlled: submission failed");
  }
  EXPECT_EQ(device_.counters().failures, 1u);
}

TEST_F(DeviceTest, MisuseOfPoints) {
  const Point real = device_.submit(program());
  const Point later{real.backend, 0, real.value + 1}, queue{real.backend, 7, 1},
      host{real.backend, backend::kHostQueue, 1};
  const std::string foreign = "point: expected one of this device, got another's";
  EXPECT_EQ(refusal([&] { other_.wait(real); }), "[wait] " + foreign);
  EXPECT_EQ(refusal([&] { (void)other_.reached(real); }), "[reached] " + foreign);
  EXPECT_EQ(refusal([&] { device_.wait({}); }), "[wait] " + foreign);
  EXPECT_EQ(refusal([&] { device_.submit(program(), {}, std::array{Point{}}); }), "[submit] " + foreign);
  EXPECT_EQ(refusal([&] { device_.wait(queue); }), "[wait] point: queue: expected less than 2, got 7");
  EXPECT_EQ(refusal([&] { device_.wait(later); }),
            "[wait] point: expected one that submit or host_point returned, got value 2 of 1");
  EXPECT_EQ(refusal([&] { device_.submit(program(), {}, std::array{later}); }),
            "[submit] point: expected one that submit or host_point returned, got value 2 of 1");
  EXPECT_EQ(refusal([&] { device_.signal(host); }),
            "[signal] point: expected one that submit or host_point returned, got value 1 of 0");
  EXPECT_EQ(refusal([&] { device_.signal(real); }),
            "[signal] point: expected one of the host's timeline, got a queue's");
}

TEST_F(DeviceTest, ProgramsInFlightAreKept) {
  Program made = program();
  device_.submit(made);
  const Point last = device_.submit(made);
  made = {};
  EXPECT_EQ(backend_->live_programs(), 1u);
  backend_->complete(0, last.value - 1);
  device_.submit(program());
  EXPECT_EQ(backend_->live_programs(), 2u);
  backend_->complete(0, last.value);
  device_.submit(program());
  EXPECT_EQ(backend_->live_programs(), 2u) << "the one that is done is let go of by the next submission";
}

TEST_F(DeviceTest, MemoryInFlightIsKept) {
  std::weak_ptr<const AllocationHandle> bound, updated;
  Point point;
  {
    const Buffer a = device_.buffer(DType::u32, {16}), elsewhere = device_.buffer(DType::u32, {1});
    bound = a.memory();
    updated = elsewhere.memory();
    const uint32_t value = 3;
    const Update update{elsewhere, std::as_bytes(std::span(&value, 1))};
    point =
        device_.submit(device_.prepare(device_.plan(record(device_, a, b_)).first), std::span(&update, 1));
  }
  EXPECT_FALSE(bound.expired());
  EXPECT_FALSE(updated.expired()) << "the device may not have written it yet";
  backend_->complete(0, point.value);
  device_.submit(program());
  EXPECT_TRUE(bound.expired());
  EXPECT_TRUE(updated.expired());
}

TEST_F(DeviceTest, ManyInFlightAreAllLetGoOf) {
  Point last;
  for (int i = 0; i < 200; ++i) last = device_.submit(program());
  EXPECT_EQ(backend_->live_programs(), 200u);
  backend_->complete(0, last.value);
  device_.submit(program());
  EXPECT_EQ(backend_->live_programs(), 1u);
}

TEST_F(DeviceTest, TheDeviceMayGoFirst) {
  auto backend = std::make_shared<ControlledBackend>(kKernels);
  const std::weak_ptr<ControlledBackend> watched = backend;
  {
    Buffer kept;
    Program program;
    Plan plan;
    {
      Device device(std::move(backend), {}, {});
      kept = device.buffer(DType::u32, {16});
      plan = device.plan(record(device, kept, device.buffer(DType::u32, {16}))).first;
      program = device.prepare(plan);
      device.submit(program, {}, std::array{device.host_point()});  // nobody will signal it
    }
    EXPECT_FALSE(watched.expired());
    EXPECT_EQ(watched.lock()->live_programs(), 1u);
    kept.span<uint32_t>()[3] = 1;
    EXPECT_EQ(program.plan().arena_bytes(), 64u);
    EXPECT_EQ(watched.lock()->live_allocations(), 3u);
    program = {};
    EXPECT_EQ(watched.lock()->live_programs(), 0u);
  }
  EXPECT_TRUE(watched.expired());
}

TEST_F(DeviceTest, AnEncoderKeepsTheDevice) {
  std::unique_ptr<Device> device = std::make_unique<Device>(null_device());
  CommandEncoder encoder = device->encoder();
  const Buffer a = device->buffer(DType::u32, {16});
  device.reset();
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, MixConstants{1, 16, 0, 16});
  EXPECT_EQ(encoder.commit().value, 1u);
}

TEST_F(DeviceTest, CommitRunsWhatWasRecorded) {
  CommandEncoder encoder = device_.encoder();
  dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(b_)}, MixConstants{1, 16, 0, 16});
  const Point point = encoder.commit({.label = "once", .queue = 1});
  EXPECT_EQ(point.queue, 1u);
  EXPECT_TRUE(backend_->prepared.once);
  EXPECT_EQ(device_.submit(device_.prepare(device_.plan(device_.encoder().finish()).first)).value, 1u)
      << "nothing recorded is a program too";
}

TEST_F(DeviceTest, CountersCount) {
  const Counters before = device_.counters();
  for (const int64_t rows : {3, 4, 5}) device_.write(a_.slice(0, rows), std::vector<uint32_t>(rows));
  device_.read<uint32_t>(a_.slice(0, 7));
  device_.read<uint32_t>(b_);
  const Program made = program();
  const uint32_t value = 1;
  const Update update{a_.slice(0, 1), std::as_bytes(std::span(&value, 1))};
  const Point first = device_.submit(made, std::span(&update, 1));
  device_.submit(made, {}, std::array{first});
  device_.buffer(DType::u8, {1});
  CommandEncoder encoder = device_.encoder();
  dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(a_)}, MixConstants{1, 16, 0, 16});
  encoder.commit({.label = "once", .queue = 1});
  EXPECT_EQ(refusal<TimeoutError>([&] { device_.wait(first, 0ns); }).substr(0, 6), "[wait]");
  backend_->complete(0, 2);
  device_.wait(first, 0ns);
  const Counters after = device_.counters();
  EXPECT_EQ(after.encoders - before.encoders, 2u);
  EXPECT_EQ(after.commits - before.commits, 1u);
  EXPECT_EQ(after.dispatches_recorded - before.dispatches_recorded, 4u);
  EXPECT_EQ(after.plans - before.plans, 2u);
  EXPECT_EQ(after.programs_prepared - before.programs_prepared, 2u);
  EXPECT_EQ(after.submissions - before.submissions, 3u);
  EXPECT_EQ(after.commands_submitted - before.commands_submitted, 7u) << "fences do not count, replays do";
  EXPECT_EQ(after.fences_submitted - before.fences_submitted, 2u);
  EXPECT_EQ(after.updates - before.updates, 1u);
  EXPECT_EQ(after.update_bytes - before.update_bytes, 4u);
  EXPECT_EQ(after.writes - before.writes, 3u);
  EXPECT_EQ(after.write_bytes - before.write_bytes, 48u);
  EXPECT_EQ(after.reads - before.reads, 2u);
  EXPECT_EQ(after.read_bytes - before.read_bytes, 92u);
  EXPECT_EQ(after.waits_given - before.waits_given, 1u);
  EXPECT_EQ(after.waits_derived - before.waits_derived, 1u) << "the other queue reads and writes a";
  EXPECT_EQ(after.host_waits - before.host_waits, 2u);
  EXPECT_EQ(after.timeouts - before.timeouts, 1u);
  EXPECT_EQ(after.failures, before.failures);
  EXPECT_EQ(after.allocations - before.allocations, 2u) << "an arena and a buffer";
}

TEST_F(DeviceTest, CountersAreOfOneDeviceAndRefusalsCountNothing) {
  const Counters before = device_.counters();
  other_.encoder();
  other_.buffer(DType::u8, {1});
  EXPECT_NE(refusal([&] { device_.submit({}); }), "nothing was thrown");
  EXPECT_NE(refusal([&] {
              device_.plan(record(other_, other_.buffer(DType::u32, {16}), other_.buffer(DType::u32, {16})));
            }),
            "nothing was thrown");
  backend_->refuse_next_submit();
  const Program made = program();
  EXPECT_NE(refusal<DeviceError>([&] { device_.submit(made); }), "nothing was thrown");
  const Counters after = device_.counters();
  EXPECT_EQ(after.encoders - before.encoders, 1u);
  EXPECT_EQ(after.plans - before.plans, 1u);
  EXPECT_EQ(after.submissions, before.submissions);
  EXPECT_EQ(after.commands_submitted, before.commands_submitted);
}

TEST_F(DeviceTest, Timestamps) {
  const Program without = program();
  const Program with = device_.prepare(plan(), {.queue = 0, .arena = {}, .timestamps = true});
  const auto spans = device_.timestamps_ns(with);
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[2].begin_ns, 40);
  EXPECT_EQ(spans[2].ready_ns, 44);
  EXPECT_EQ(spans[2].end_ns, 50);
  EXPECT_EQ(refusal([&] { (void)device_.timestamps_ns(without); }),
            "[timestamps_ns] program: expected one prepared with timestamps");
  EXPECT_EQ(refusal([&] { (void)device_.timestamps_ns({}); }),
            "[timestamps_ns] program: expected a prepared program, got none");
  EXPECT_EQ(refusal([&] { (void)other_.timestamps_ns(with); }),
            "[timestamps_ns] program: expected one of this device, got another's");
}

TEST_F(DeviceTest, ThreadsShareADevice) {
  Device device = null_device();
  const auto work = [&](uint32_t queue) {
    const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
    const Program made = device.prepare(device.plan(record(device, a, b)).first,
                                        {.queue = queue, .arena = {}, .timestamps = false});
    const uint32_t value = queue;
    const Update update{a.slice(0, 1), std::as_bytes(std::span(&value, 1))};
    for (int i = 0; i < 500; ++i) device.wait(device.submit(made, std::span(&update, 1)), 1s);
    device.signal(device.host_point());
  };
  std::vector<std::thread> threads;
  for (uint32_t queue = 0; queue < 4; ++queue) threads.emplace_back(work, queue);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(device.counters().submissions, 2000u);
  EXPECT_EQ(device.host_point().value, 5u);
}

}  // namespace
}  // namespace refrain::null_tests

// Each breach of the contract of device.h is found by validate, with a message that names the place.
#include "refrain/backend/validate/validate_backend.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <functional>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/core/error.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr uint32_t kRows = 8;
constexpr size_t kBytes = kRows * sizeof(uint32_t);

class Validate : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    CpuOptions options;
    options.threads = 2;
    std::unique_ptr<Backend> device = make_cpu(options, test_kernels());
    if (GetParam()) device = make_remote(std::move(device));
    device_ = make_validate(std::move(device));
    a_ = device_->allocate({kBytes, "a"});
    b_ = device_->allocate({kBytes, "b"});
    scratch_ = device_->allocate({4096, "scratch"});
    live_ = device_->allocate({64, "live"});
  }

  // copy a to b, labelled, then increment b.
  PlanBuilder valid() const {
    PlanBuilder builder;
    builder.add(kCopy, {in(view(a_)), out(view(b_))}, {.launch = {kRows, 1, 1, 0}, .label = "layer 3"});
    builder.add(kIncrement, {inout(view(b_))},
                {.launch = {kRows, 1, 1, 0}, .deps = {0}, .live = in(view(live_, 0, 4)), .label = "layer 4"});
    return builder;
  }

  // copy a to b with the scratch of both workers.
  PlanBuilder with_scratch() const {
    PlanBuilder builder;
    builder.add(kRecord, {inout(view(a_))},
                {.launch = {kRows, 1, 1, sizeof(WorkerRecord)},
                 .scratch = inout(view(scratch_, 0, 2 * sizeof(WorkerRecord))),
                 .label = "layer 5"});
    return builder;
  }

  static void expect(const std::function<void()>& call, std::initializer_list<const char*> parts) {
    try {
      call();
      ADD_FAILURE() << "not found: " << *parts.begin();
    } catch (const InvalidArgument& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find("[validate] "), 0u) << message;
      for (const char* part : parts)
        EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
    }
  }

  void refuse(const PlanBuilder& builder, std::initializer_list<const char*> parts,
              const ExecutableOptions& options = {}) {
    expect([&] { device_->prepare(builder.plan, options); }, parts);
  }

  void expect_wait(const Point& point) { EXPECT_TRUE(device_->wait(point, std::chrono::seconds(60))); }

  std::unique_ptr<Backend> device_;
  const Allocation* a_ = nullptr;
  const Allocation* b_ = nullptr;
  const Allocation* scratch_ = nullptr;
  const Allocation* live_ = nullptr;
};

TEST_P(Validate, AcceptsWhatIsRight) {
  for (const PlanBuilder& builder : {valid(), with_scratch()}) {
    const auto program = device_->prepare(builder.plan, {});
    expect_wait(device_->submit({program.get(), {}, {}}));
  }
}

TEST_P(Validate, Allocate) {
  expect([&] { device_->allocate({0, "nothing"}); }, {"allocate: 'nothing'"});
}

TEST_P(Validate, Imports) {
  alignas(64) static std::array<std::byte, 256> memory;
  const Allocation* low = device_->allocate({128, "low", MemoryKind::import_host, memory.data()});
  const auto import = [&](void* host, size_t bytes) {
    device_->allocate({bytes, "new", MemoryKind::import_host, host});
  };
  expect([&] { import(memory.data() + 64, 128); },
         {"allocate: 'new': imports memory of the live allocation 'low'"});
  expect([&] { import(memory.data(), 256); }, {"the live allocation 'low'"});
  const Allocation* pinned = device_->allocate({128, "pinned", MemoryKind::host});
  expect([&] { import(pinned->host, 16); }, {"the live allocation 'pinned'"});
  device_->release(pinned);
  const auto refused = [&](const BufferSpec& spec) {
    expect([&] { device_->allocate(spec); }, {"allocate: 'new': expected the address of an import's kind"});
  };
  refused({128, "new", MemoryKind::import_host});
  refused({128, "new", MemoryKind::host, memory.data() + 128});
  refused({128, "new", MemoryKind::device, memory.data() + 128});
  refused({128, "new", MemoryKind::import_device, memory.data() + 128});
  refused({128, "new", MemoryKind::import_device, nullptr, 0});
  refused({128, "new", MemoryKind::import_host, nullptr, 4096});
  expect(
      [&] {
        device_->allocate({16, "new", MemoryKind::import_device, nullptr, a_->device_address});
      },
      {"the live allocation 'a'"});
  expect([&] { import(memory.data() + 132, 4); }, {"allocate: 'new': imported memory is not aligned to 64"});
  device_->release(device_->allocate({128, "beside", MemoryKind::import_host, memory.data() + 128}));
  device_->release(low);
  device_->release(device_->allocate({256, "all", MemoryKind::import_host, memory.data()}));
}

TEST_P(Validate, ViewsOfPlans) {
  PlanBuilder beyond = valid();
  beyond.plan.args[0].view.bytes = kBytes + 1;
  refuse(beyond, {"command 0 'layer 3' (copy_test): argument 0 (input)", "leave the allocation of 32"});
  PlanBuilder overflow = valid();
  overflow.plan.args[1].view.offset_bytes = SIZE_MAX;
  refuse(overflow, {"argument 1 (output)", "leave the allocation"});
  const Allocation* dead = device_->allocate({kBytes, "dead"});
  PlanBuilder released = valid();
  released.plan.args[0].view = view(dead);
  device_->release(dead);
  refuse(released, {"command 0 'layer 3'", "argument 0 (input)", "does not live"});
  PlanBuilder unbound = valid();
  unbound.plan.args[1].view.bytes = 0;
  refuse(unbound, {"argument 1 (output)", "not bound"});
}

TEST_P(Validate, Ranges) {
  PlanBuilder builder = valid();
  builder.plan.commands[1].args = {1, 99};
  refuse(builder, {"command 1 'layer 4' (increment_test)", "leave PlanData::args"});
  builder = valid();
  builder.plan.commands[1].args.count = 1;
  refuse(builder, {"command 1", "expected 2 arguments, got 1"});
  builder = valid();
  builder.plan.commands[1].constants.first = 4096;
  refuse(builder, {"command 1", "leave PlanData::constants"});
  builder = valid();
  builder.plan.commands[1].constants.count = 8;
  refuse(builder, {"command 1", "constants: expected 16 bytes, got 8"});
  builder = valid();
  builder.plan.commands[1].constants.first = 8;
  refuse(builder, {"command 1", "not aligned to 16"});
  builder = valid();
  builder.plan.commands[1].deps.first = UINT32_MAX;
  refuse(builder, {"command 1", "leave PlanData::deps"});
  builder = valid();
  builder.plan.commands[1].label = 7;
  refuse(builder, {"command 1", "label 7 of 2"});
}

TEST_P(Validate, Order) {
  PlanBuilder builder = valid();
  builder.plan.deps[0] = 1;
  refuse(builder, {"command 1 'layer 4'", "dep 1 is not earlier"});
  builder = valid();
  builder.plan.commands[1].level = 0;
  refuse(builder, {"command 1 'layer 4'", "level: expected 1, got 0"});
  builder = valid();
  builder.plan.commands[1].level = 2;
  refuse(builder, {"command 1 'layer 4'", "level: expected 1, got 2"});
}

TEST_P(Validate, Kernels) {
  PlanBuilder builder = valid();
  builder.plan.commands[0].kernel = nullptr;
  refuse(builder, {"command 0 'layer 3'", "no kernel"});
  Kernel needy = kCopy;
  needy.needs = uint64_t{1} << 63;
  builder = valid();
  builder.plan.commands[0].kernel = &needy;
  refuse(builder, {"command 0", "features"});
  Kernel hollow = kCopy;
  hollow.entry = nullptr;
  builder = valid();
  builder.plan.commands[0].kernel = &hollow;
  refuse(builder, {"command 0", "entry"});
  builder = valid();
  builder.plan.args[1].access = Access::inout;
  refuse(builder, {"argument 1 (output)", "access is not that of the schema"});
}

TEST_P(Validate, Launches) {
  PlanBuilder builder = valid();
  builder.plan.commands[0].launch.rows_per_block = 0;
  refuse(builder, {"command 0", "launch"});
  builder = valid();
  builder.plan.commands[0].launch.rows = UINT32_MAX;
  builder.plan.commands[0].launch.tiles_per_block = 2;
  refuse(builder, {"command 0", "too many"});
  builder = valid();
  builder.plan.commands[0].launch.scratch_bytes = 64;
  refuse(builder, {"command 0", "scratch"});
}

TEST_P(Validate, LiveCounts) {
  PlanBuilder builder = valid();
  builder.plan.args[3].view.bytes = 2;
  refuse(builder, {"command 1 'layer 4' (increment_test): argument 1 (live count)", "aligned u32"});
  builder = valid();
  builder.plan.args[3].access = Access::inout;
  refuse(builder, {"(live count)", "expected access in"});
  builder = valid();
  builder.plan.commands[1].live_arg = 0;
  refuse(builder, {"command 1", "live_arg"});
}

TEST_P(Validate, Scratch) {
  PlanBuilder builder = with_scratch();
  builder.plan.args[1].view.bytes = sizeof(WorkerRecord);
  refuse(builder,
         {"command 0 'layer 5' (record_test): argument 1 (scratch)", "expected 2 times 64 bytes, got 64"});
  const std::vector<uint32_t> placement = {1};
  EXPECT_NE(device_->prepare(builder.plan, {.placement = placement}), nullptr) << "one worker needs one part";
  builder = with_scratch();
  builder.plan.args[1].view.offset_bytes = 32;
  refuse(builder, {"argument 1 (scratch)", "aligned to 64"});
  builder = with_scratch();
  builder.plan.args[1].access = Access::in;
  refuse(builder, {"argument 1 (scratch)", "access"});
}

TEST_P(Validate, Options) {
  refuse(valid(), {"queue: expected below 4, got 4"}, {.queue = 4});
  const std::vector<uint32_t> few = {0}, far = {0, 2};
  refuse(valid(), {"placement: expected 2 workers, got 1"}, {.placement = few});
  refuse(valid(), {"command 1 'layer 4'", "placement: expected below 2, got 2"}, {.placement = far});
}

TEST_P(Validate, Arena) {
  PlanBuilder builder;
  builder.plan.arena_bytes = 256;
  builder.add(kFill, {out(arena_view(128, kBytes))}, {.launch = {kRows, 1, 1, 0}});
  refuse(builder, {"arena: 256 bytes needed, none given"});
  refuse(builder, {"arena: 256 bytes needed, 255 given"}, {.arena = view(scratch_, 0, 255)});
  refuse(builder, {"arena", "leaves its allocation"}, {.arena = view(scratch_, 4000, 256)});
  refuse(builder, {"arena", "not aligned"}, {.arena = view(scratch_, 8, 256)});
  EXPECT_NE(device_->prepare(builder.plan, {.arena = view(scratch_, 64, 256)}), nullptr);
  builder.plan.args[0].view.offset_bytes = 240;
  refuse(builder, {"argument 0 (output)", "leave the arena of 256"}, {.arena = view(scratch_, 64, 256)});
}

TEST_P(Validate, SealedArguments) {
  PlanBuilder both = valid();
  both.plan.args[1].sealed = true;
  refuse(both, {"argument 1 (output)", "sealed, and written"});
  PlanBuilder within = valid();
  within.plan.args[1].view = view(a_);
  within.plan.args[0].sealed = true;
  refuse(within, {"argument 1 (output)", "writes what is sealed in command 0 'layer 3'"});

  PlanBuilder reads = valid();
  reads.plan.args[0].sealed = true;
  PlanBuilder writes;
  writes.add(kFill, {out(view(a_))}, {.launch = {kRows, 1, 1, 0}, .label = "layer 9"});
  {
    const auto writer = device_->prepare(writes.plan, {});
    refuse(reads, {"argument 0 (input)", "a program that lives writes it in command 0 'layer 9'"});
  }
  const auto reader = device_->prepare(reads.plan, {});
  refuse(writes, {"command 0 'layer 9'", "an earlier plan sealed in command 0 'layer 3'"});
  const uint32_t value = 1;
  const UpdateData update{view(a_, 4, 4), std::as_bytes(std::span(&value, 1))};
  expect(
      [&] {
        device_->submit({reader.get(), {&update, 1}, {}});
      },
      {"submit: update", "sealed in", "layer 3"});
}

TEST_P(Validate, ReadOnlyImports) {
  void* page = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  const Allocation* import = device_->allocate({4096, "mapped file", MemoryKind::import_host, page});
  PlanBuilder builder = valid();
  builder.plan.args[0].view = view(import, 0, kBytes);
  const auto program = device_->prepare(builder.plan, {});
  const uint32_t value = 1;
  const UpdateData update{view(import, 0, 4), std::as_bytes(std::span(&value, 1))};
  expect(
      [&] {
        device_->submit({program.get(), {&update, 1}, {}});
      },
      {"update", "read-only import 'mapped file'"});
  builder.plan.args[1].view = view(import, 0, kBytes);
  refuse(builder, {"argument 1 (output)", "read-only import 'mapped file'"});
  expect([&] { device_->write(view(import, 0, 4), std::as_bytes(std::span(&value, 1))); },
         {"write: writes the read-only import 'mapped file'"});
  device_->release(import);
  munmap(page, 4096);
}

TEST_P(Validate, Updates) {
  const PlanBuilder builder = valid();
  const auto program = device_->prepare(builder.plan, {});
  const std::vector<uint32_t> values(kRows + 1);
  const auto submit = [&](const BufferView& to, size_t bytes) {
    const UpdateData update{to, std::as_bytes(std::span(values)).first(bytes)};
    device_->submit({program.get(), {&update, 1}, {}});
  };
  expect([&] { submit(view(a_), 4); }, {"update: 4 bytes for a view of 32"});
  expect([&] { submit(view(a_, 4, kBytes), kBytes); }, {"update", "leave the allocation 'a' of 32"});
  expect([&] { submit({nullptr, 0, 4}, 4); }, {"update", "does not live"});
}

TEST_P(Validate, Points) {
  const PlanBuilder builder = valid();
  const auto program = device_->prepare(builder.plan, {});
  const auto wait = [&](const Point& point) { device_->wait(point, std::chrono::nanoseconds(0)); };
  expect([&] { wait({device_->id, 0, 1}); }, {"wait: point: value 1 of queue 0 was never returned"});
  expect([&] { wait({device_->id, 4, 0}); }, {"wait: point: queue 4 does not exist"});
  expect([&] { wait({0, 0, 0}); }, {"wait: point: of another backend"});
  const Point later{device_->id, 1, 1};
  expect([&] { device_->submit({program.get(), {}, {&later, 1}}); }, {"submit: point: value 1 of queue 1"});
  expect([&] { device_->completed(4); }, {"completed: queue 4"});
}

TEST_P(Validate, Programs) {
  const PlanBuilder builder = valid();
  expect([&] { device_->submit({nullptr, {}, {}}); }, {"submit: program"});
  const auto once = device_->prepare(builder.plan, {.once = true});
  expect_wait(device_->submit({once.get(), {}, {}}));
  expect([&] { device_->submit({once.get(), {}, {}}); }, {"prepared for one submission"});
  std::vector<TickSpan> spans(2);
  expect([&] { device_->timestamps(*once, spans); }, {"prepared without timestamps"});
  const auto timed = device_->prepare(builder.plan, {.timestamps = true});
  spans.resize(1);
  expect([&] { device_->timestamps(*timed, spans); }, {"spans: expected 2, got 1"});
}

TEST_P(Validate, ReleaseInFlight) {
  const PlanBuilder builder = valid();
  const auto program = device_->prepare(builder.plan, {});
  const Point one{device_->id, kHostQueue, 1};
  const Point point = device_->submit({program.get(), {}, {&one, 1}});
  device_->release(a_);
  expect([&] { device_->wait(point, std::chrono::nanoseconds(0)); },
         {"release: allocation 'a' is used by submission 1 of queue 0, which is in flight"});
  device_->signal_host(1);
  expect_wait(point);  // the memory was kept for it
  expect([&] { device_->submit({program.get(), {}, {}}); }, {"argument 0 (input)", "has been released"});
  device_->release(a_);
  expect([&] { device_->allocate({64, ""}); }, {"release: this is no live allocation"});
}

TEST_P(Validate, ProgramEndsInFlight) {
  const PlanBuilder builder = valid();
  auto program = device_->prepare(builder.plan, {});
  const Point one{device_->id, kHostQueue, 1};
  const Point point = device_->submit({program.get(), {}, {&one, 1}});
  program.reset();
  expect([&] { device_->wait(point, std::chrono::nanoseconds(0)); }, {"program: ended while a submission"});
  device_->signal_host(1);
  expect_wait(point);
}

TEST_P(Validate, Copies) {
  std::vector<std::byte> bytes(kBytes + 1);
  const auto write = [&](const BufferView& to, size_t count) {
    device_->write(to, std::span(bytes).first(count));
  };
  const auto read = [&](const BufferView& from, size_t count) {
    device_->read(from, std::span(bytes).first(count));
  };
  expect([&] { write(view(a_), 4); }, {"write: 4 bytes for a view of 32"});
  expect([&] { read(view(a_), kBytes + 1); }, {"read: 33 bytes for a view of 32"});
  expect([&] { write(view(a_, 4, kBytes), kBytes); }, {"write: view", "leave the allocation 'a' of 32"});
  expect([&] { read(view(a_, SIZE_MAX, 4), 4); }, {"read: view", "leave the allocation 'a' of 32"});
  expect([&] { read({nullptr, 0, 4}, 4); }, {"read: view", "does not live"});

  // In flight a is read, the first word of live is, b is written.
  const PlanBuilder builder = valid();
  const auto program = device_->prepare(builder.plan, {});
  const uint32_t rows = 3;
  const UpdateData update{view(live_, 8, 4), std::as_bytes(std::span(&rows, 1))};
  const Point one{device_->id, kHostQueue, 1};
  const Point point = device_->submit({program.get(), {&update, 1}, {&one, 1}});
  expect([&] { write(view(a_, 28, 4), 4); }, {"write: allocation 'a' is used by submission 1 of queue 0"});
  expect([&] { read(view(b_, 0, 4), 4); }, {"read: allocation 'b' is written by submission 1 of queue 0"});
  expect([&] { write(view(b_), kBytes); }, {"write: allocation 'b' is used by submission 1"});
  expect([&] { write(view(live_, 0, 4), 4); }, {"write: allocation 'live' is used by"});
  expect([&] { read(view(live_, 8, 4), 4); }, {"read: allocation 'live' is written by"});
  read(view(a_), kBytes);
  read(view(live_, 0, 4), 4);
  write(view(live_, 4, 4), 4);
  write(view(live_, 12, 4), 4);
  write(view(scratch_, 0, 4), 4);
  device_->signal_host(1);
  expect_wait(point);
  write(view(b_), kBytes);

  PlanBuilder seals = valid();
  seals.plan.args[0].sealed = true;
  const auto sealing = device_->prepare(seals.plan, {});
  expect([&] { write(view(a_, 0, 4), 4); }, {"write: writes what is sealed in command 0 'layer 3'"});
}

TEST_P(Validate, Advise) {
  const BufferView beyond = view(a_, 8, kBytes);
  expect([&] { device_->advise({&beyond, 1}, Advice::resident); }, {"advise: view", "'a'"});
}

INSTANTIATE_TEST_SUITE_P(Reach, Validate, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "remote" : "cpu"; });

TEST(Null, CountsAndVisits) {
  const auto device = make_null(test_kernels());
  const Allocation* data = device->allocate({kBytes, "data"});
  PlanBuilder builder;
  for (int i = 0; i < 5; ++i) builder.add(kFill, {out(view(data))}, {.launch = {kRows, 1, 1, 0}});
  const auto program = device->prepare(builder.plan, {});
  const uint32_t value = 1;
  const UpdateData update{view(data, 0, 4), std::as_bytes(std::span(&value, 1))};
  for (int i = 0; i < 3; ++i) device->submit({program.get(), {&update, 1}, {}});
  const NullCounters counters = null_counters(*device);
  EXPECT_EQ(counters.programs, 1u);
  EXPECT_EQ(counters.submissions, 3u);
  EXPECT_EQ(counters.commands, 15u);
  EXPECT_EQ(counters.updates, 3u);
  EXPECT_EQ(counters.update_bytes, 12u);
  EXPECT_NE(counters.checksum, 0u);
  EXPECT_EQ(contents<uint32_t>(*device, data)[0], 0u);
  CpuOptions options;
  options.threads = 1;
  EXPECT_THROW(null_counters(*make_cpu(options, {})), InvalidArgument);
}

}  // namespace
}  // namespace refrain::backend::testing

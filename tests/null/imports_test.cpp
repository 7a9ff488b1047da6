// Memory of the host used in place: one identity for each byte, its owner kept, misuse refused.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/mapped_file.h"
#include "refrain/format/plain.h"
#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

std::string address(const void* memory) {
  std::ostringstream text;
  text << memory;
  return text.str();
}

struct alignas(64) Block {
  std::array<uint32_t, 64> words{};
};

constexpr backend::WeightLayout kAsStored[] = {
    {"as stored", [](const backend::WeightInfo&, Uses) { return true; },
     [](const backend::WeightInfo& info) { return static_cast<size_t>(info.shape.elements()) * 4; },
     [](const TensorSource&, const backend::WeightInfo&, backend::RowRange, const backend::PackedBytes&) {},
     nullptr, true}};

class ImportMemory : public testing::Test {
 protected:
  static Point run(Device& device, const Buffer& from, const Buffer& to, uint32_t queue = 0) {
    CommandEncoder encoder = device.encoder();
    dispatch(encoder, kMix, std::array{Operand(from), Operand(), Operand(to)}, MixConstants{1, 16, 0, 16});
    return encoder.commit({.label = "step", .queue = queue});
  }

  std::shared_ptr<Block> block_ = std::make_shared<Block>();
  std::shared_ptr<ControlledBackend> backend_ = std::make_shared<ControlledBackend>(kKernels);
};

TEST_F(ImportMemory, IsUsedInPlaceByEveryDevice) {
  const std::function<std::unique_ptr<backend::Backend>()> makers[] = {
      [] { return backend::make_cpu({}, kKernels); },
      [] { return backend::make_validate(backend::make_cpu({}, kKernels)); },
      [] { return backend::make_validate(backend::make_fault(backend::make_cpu({}, kKernels))); },
      [] { return backend::make_validate(backend::make_null(kKernels)); },
  };
  for (const auto& make : makers) {
    Device device(std::shared_ptr<backend::Backend>(make()), {}, {});
    const auto block = std::make_shared<Block>();
    block->words[3] = 5;
    Buffer memory = device.import_memory(block->words.data(), DType::u32, {64}, block, "block");
    EXPECT_EQ(memory.span<uint32_t>().data(), block->words.data());
    EXPECT_EQ(device.memory().used_bytes, 0u) << "not a copy";
    device.wait(run(device, memory.slice(0, 16), memory.slice(16, 16)), 60s);
    EXPECT_EQ(block->words[16 + 3] != 0, device.info().backend == "cpu");
    EXPECT_EQ(block.use_count(), 2);
    memory = {};
    device.wait(device.submit(device.prepare(device.plan(device.encoder().finish()).first)), 60s);
    EXPECT_EQ(block.use_count(), 1);
  }
}

TEST_F(ImportMemory, TheOwnerIsKeptWhileWorkIsInFlight) {
  Device device(backend_, {}, {});
  const std::weak_ptr<Block> watched = block_;
  uint32_t* words = block_->words.data();
  Point point = run(device, device.import_memory(words, DType::u32, {16}, std::move(block_), "block"),
                    device.buffer(DType::u32, {16}));
  EXPECT_FALSE(watched.expired());
  backend_->complete(0, point.value);
  point = run(device, device.buffer(DType::u32, {16}), device.buffer(DType::u32, {16}));
  EXPECT_TRUE(watched.expired());
  backend_->complete(0, point.value);
}

TEST_F(ImportMemory, BytesWithinAnImportAreAViewOfIt) {
  Device device(backend_, {}, {});
  const Buffer all = device.import_memory(block_->words.data(), DType::u32, {64}, block_, "all");
  const Buffer same = device.import_memory(block_->words.data(), DType::f32, {64}, nullptr, "same");
  auto owner = std::make_shared<int>(1);
  Buffer part = device.import_memory(block_->words.data() + 20, DType::u32, {20}, owner, "part");
  EXPECT_EQ(same.device_view().allocation, all.device_view().allocation);
  EXPECT_EQ(part.device_view().allocation, all.device_view().allocation);
  EXPECT_EQ(part.offset_bytes(), 80u);
  EXPECT_EQ(device.counters().allocations, 1u);
  EXPECT_EQ(owner.use_count(), 2) << "each owner is kept";
  part = {};
  EXPECT_EQ(owner.use_count(), 1);
  // Hazards are exact: two queues that write the same bytes under two names are ordered, others are not.
  const Buffer overlapping = device.import_memory(block_->words.data() + 16, DType::u32, {16}, nullptr);
  const Buffer apart = device.import_memory(block_->words.data() + 40, DType::u32, {16}, nullptr);
  run(device, all.slice(0, 16), all.slice(16, 16));
  run(device, apart, apart, 1);
  EXPECT_TRUE(backend_->after.empty());
  run(device, apart, overlapping, 1);
  ASSERT_EQ(backend_->after.size(), 1u);
  EXPECT_EQ(backend_->after[0].queue, 0u);
  backend_->complete(0, 1);
  backend_->complete(1, 2);
}

TEST_F(ImportMemory, EveryOwnerIsKeptWhileWorkIsInFlight) {
  Device device(backend_, {}, {});
  const Buffer all = device.import_memory(block_->words.data(), DType::u32, {64}, nullptr, "all");
  auto owner = std::make_shared<int>(1), updated = std::make_shared<int>(2);
  Buffer part = device.import_memory(block_->words.data() + 16, DType::u32, {16}, owner, "part");
  Buffer word = device.import_memory(block_->words.data() + 40, DType::u32, {1}, updated, "word");
  CommandEncoder encoder = device.encoder();
  dispatch(encoder, kMix, std::array{Operand(all.slice(0, 16)), Operand(), Operand(part)},
           MixConstants{1, 16, 0, 16});
  Program program = device.prepare(device.plan(encoder.finish()).first);
  const uint32_t value = 1;
  {
    const Update update{word, std::as_bytes(std::span(&value, 1))};
    device.submit(program, std::span(&update, 1));
  }
  part = {}, word = {}, program = {};
  EXPECT_EQ(owner.use_count(), 2) << "bound";
  EXPECT_EQ(updated.use_count(), 2) << "updated, of memory that the program binds through another import";
  backend_->complete(0, 1);
  run(device, all.slice(0, 16), all.slice(0, 16));
  EXPECT_EQ(owner.use_count(), 1);
  EXPECT_EQ(updated.use_count(), 1);
  backend_->complete(0, 2);
}

TEST_F(ImportMemory, OverlapInPartIsRefused) {
  Device device(backend_, {}, {});
  const Buffer low = device.import_memory(block_->words.data(), DType::u32, {32}, block_, "low");
  const auto import = [&](size_t first, int64_t count) {
    return refusal(
        [&] { device.import_memory(block_->words.data() + first, DType::u32, {count}, block_, "new"); });
  };
  EXPECT_EQ(import(16, 32), "[import_memory] memory: 'new' [" + address(block_->words.data() + 16) +
                                ", +128) overlaps the import 'low' [" + address(block_->words.data()) +
                                ", +128) in part: import all of it once and take views");
  EXPECT_NE(import(0, 64), "nothing was thrown") << "more than the import";
  EXPECT_EQ(import(32, 32), "nothing was thrown") << "they touch";
  EXPECT_EQ(block_.use_count(), 2) << "what was refused is not kept";
}

TEST_F(ImportMemory, WhatIsGoneIsForgotten) {
  Device device(backend_, {}, {});
  uint64_t last = 0;
  for (int i = 0; i < 1000; ++i) {
    const int64_t words = i % 2 == 0 ? 32 : 64;
    const Buffer memory = device.import_memory(block_->words.data(), DType::u32, {words}, block_, "again");
    EXPECT_NE(memory.device_view().allocation->id, last);
    last = memory.device_view().allocation->id;
    EXPECT_EQ(backend_->live_allocations(), 1u);
  }
  EXPECT_EQ(backend_->live_allocations(), 0u);
}

TEST_F(ImportMemory, OutlivesTheDevice) {
  Buffer kept;
  {
    Device device(std::move(backend_), {}, {});
    kept = device.import_memory(block_->words.data(), DType::u32, {64}, block_, "kept");
  }
  kept.span<uint32_t>()[0] = 4;
  EXPECT_EQ(block_->words[0], 4u);
  kept = {};
  EXPECT_EQ(block_.use_count(), 1);
}

TEST_F(ImportMemory, ThreadsImportAndLetGo) {
  Device device(std::shared_ptr<backend::Backend>(backend::make_validate(backend::make_null(kKernels))), {},
                {});
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const Buffer memory = device.import_memory(block_->words.data(), DType::u32, {64}, block_, "shared");
        ASSERT_EQ(memory.span<const uint32_t>().data(), block_->words.data());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(block_.use_count(), 1);
}

// The last share has gone, but its thread has not yet got as far as to take the bytes back.
TEST_F(ImportMemory, WaitsForBytesThatAreBeingTakenBack) {
  Device device(backend_, {}, {});
  const auto import = [&](const std::shared_ptr<Block>& block) {
    return device.import_memory(block->words.data(), DType::u32, {64}, block, "x");
  };
  std::optional<Buffer> first = import(block_);
  const std::weak_ptr<const AllocationHandle> memory = first->memory();
  Buffer again;
  std::thread importer, releaser;
  backend_->at_allocate = [&] {  // no other import goes on meanwhile
    importer = std::thread([&] { again = import(block_); });
    std::this_thread::sleep_for(50ms);
    releaser = std::thread([&] { first.reset(); });
    test::eventually([&] { return memory.expired(); });
  };
  const Buffer other = import(std::make_shared<Block>());
  importer.join();
  releaser.join();
  EXPECT_EQ(again.bytes(), 256u);
  EXPECT_EQ(backend_->live_allocations(), 2u);
}

TEST_F(ImportMemory, ReadOnlyMemoryIsNotWritten) {
  void* page = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  {
    Device device(std::shared_ptr<backend::Backend>(backend::make_validate(backend::make_cpu({}, kKernels))),
                  {}, {});
    const Buffer memory =
        device.import_memory(static_cast<const void*>(page), DType::u32, {64}, nullptr, "page");
    const Buffer part = memory.slice(0, 16), view = memory.view(DType::u32, {16}, 64);
    const Buffer out = device.buffer(DType::u32, {16});
    const std::string span = "[buffer] span: expected a span of const, since 'page' is read-only";
    for (const Buffer& each : {memory, part, view}) {
      EXPECT_TRUE(each.read_only());
      EXPECT_EQ(each.span<const uint32_t>()[0], 0u);
      EXPECT_EQ(refusal([&] { (void)each.span<uint32_t>(); }), span);
      EXPECT_EQ(refusal([&] { (void)each.host_span(); }), span);
    }
    device.wait(run(device, part, out), 60s);
    EXPECT_EQ(refusal([&] { run(device, out, part); }),
              "[mix] output: expected memory to write, got a read-only buffer");
    const Program made = device.prepare(device.plan(device.encoder().finish()).first);
    const uint32_t value = 1;
    const Update update{view.slice(0, 1), std::as_bytes(std::span(&value, 1))};
    EXPECT_EQ(refusal([&] { device.submit(made, std::span(&update, 1)); }),
              "[submit] update 0: expected memory to write, got a read-only buffer");
    CommandEncoder encoder = device.encoder();
    const Temp t = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(out), Operand(), Operand(t)}, MixConstants{1, 16, 0, 16});
    const Plan plan = device.plan(encoder.finish()).first;
    EXPECT_EQ(refusal([&] { device.prepare(plan, {.queue = 0, .arena = memory}); }),
              "[prepare] arena: expected memory to write, got a read-only buffer");
  }
  munmap(page, 4096);
}

TEST_F(ImportMemory, Misuse) {
  Device device(backend_, {}, {});
  const auto import = [&](void* memory, DType dtype, const Shape& shape) {
    return refusal([&] { device.import_memory(memory, dtype, shape, block_, "x"); });
  };
  auto* bytes = reinterpret_cast<std::byte*>(block_->words.data());
  EXPECT_EQ(import(nullptr, DType::u32, {4}),
            "[import_memory] memory: expected memory of the host, got 'x' [0x0, +16)");
  EXPECT_EQ(import(bytes, DType::u32, {0}),
            "[import_memory] x: expected elements of a known size, got u32 [0]");
  EXPECT_EQ(import(bytes, DType::u32, {int64_t{1} << 62}),
            "[import_memory] x: [4611686018427387904] is too large");
  EXPECT_EQ(import(bytes + 16, DType::u32, {4}),
            "[import_memory] memory: expected an address aligned to 64 bytes, got 'x' [" +
                address(bytes + 16) + ", +16)");
  const Buffer all = device.import_memory(bytes, DType::u8, {256}, block_, "all");
  EXPECT_EQ(import(bytes + 3, DType::u32, {4}),
            "[buffer] view: offset 3 is not a multiple of the 4 bytes of u32");
  EXPECT_EQ(import(bytes + 3, DType::u8, {4}), "nothing was thrown");
  Device far(std::make_shared<ControlledBackend>(kKernels, false), {}, {});
  EXPECT_EQ(refusal<DeviceError>([&] { far.import_memory(bytes, DType::u8, {4}, block_, "x"); }),
            "controlled: no imports");
}

TEST_F(ImportMemory, ARefusedImportLeavesNothing) {
  auto owned = backend::make_fault(backend::make_null(kKernels));
  backend::Backend* fault = owned.get();
  Device device(std::shared_ptr<backend::Backend>(std::move(owned)), {}, {});
  backend::set_faults(*fault, {.allocation = 1});
  const auto import = [&](int64_t words) {
    return device.import_memory(block_->words.data(), DType::u32, {words}, block_, "x");
  };
  EXPECT_NE(refusal<DeviceError>([&] { import(64); }), "nothing was thrown");
  EXPECT_EQ(block_.use_count(), 1);
  EXPECT_EQ(device.counters().allocations, 0u);
  EXPECT_EQ(import(16).bytes(), 64u);
  EXPECT_EQ(import(64).bytes(), 256u) << "the earlier ones are forgotten";
}

TEST_F(ImportMemory, AMappedFileIsOneImport) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "imports_test.bin";
  std::ofstream(path, std::ios::binary) << std::string(256, 'x');
  const auto file = MappedFile::open(path);
  Device device(backend_, kAsStored, {});
  const auto source = [&](size_t first_bytes, int64_t elements) {
    TensorSource result =
        format::plain_tensor("w", DType::f32, {elements}, file->bytes().subspan(first_bytes, elements * 4));
    result.file = file;
    return result;
  };
  {
    const Weight low = device.pack(source(0, 32), {Use::matvec});
    const Weight high = device.pack(source(64, 48), {Use::matvec});  // they overlap, as tied weights do
    EXPECT_TRUE(low.in_place() && high.in_place());
    EXPECT_EQ(backend_->live_allocations(), 1u);
    EXPECT_EQ(device.counters().allocations, 1u);
    const Buffer view = device.import_memory(file->bytes().data(), DType::u8, {256}, file, "the same");
    EXPECT_EQ(view.device_view().allocation, &low.state()->memory->allocation());
    EXPECT_EQ(device.counters().allocations, 1u);
  }
  EXPECT_EQ(backend_->live_allocations(), 0u);
  EXPECT_EQ(file.use_count(), 1);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace refrain::null_tests

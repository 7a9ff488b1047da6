// The contract of backend.h on memory: what is allocated and imported, what copies move, what both reach.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "refrain/core/error.h"
#include "tests/conformance/conformance.h"

namespace refrain::backend::testing {
namespace {

TEST_P(Conformance, Allocate) {
  std::set<uint64_t> ids;
  const size_t before = device_->memory().used_bytes;
  std::vector<const Allocation*> allocations;
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4096}, size_t{3} << 20}) {
    const Allocation* allocation = allocate(bytes);
    allocations.push_back(allocation);
    EXPECT_EQ(allocation->bytes, bytes);
    EXPECT_GT(allocation->id, 0u);
    EXPECT_TRUE(ids.insert(allocation->id).second);
    EXPECT_EQ(allocation->device_address % device_->info.buffer_alignment_bytes, 0u);
    EXPECT_EQ(allocation->host != nullptr, device_->info.host_memory);
    const std::vector<uint8_t> content = contents<uint8_t>(allocation);
    EXPECT_EQ(std::accumulate(content.begin(), content.end(), 0u), 0u);
    device_->write(view(allocation), std::vector(bytes, std::byte{0xA5}));
  }
  EXPECT_GE(device_->memory().used_bytes, before + (size_t{3} << 20));
  EXPECT_GE(device_->memory().budget_bytes, device_->memory().used_bytes);
  for (const Allocation* allocation : allocations) device_->release(allocation);
  EXPECT_EQ(device_->memory().used_bytes, before);
  EXPECT_TRUE(ids.insert(allocate(64)->id).second) << "an id was used again";
}

TEST_P(Conformance, AllocateRefused) {
  const Allocation* held = allocate(4096);
  try {
    allocate(size_t{1} << 60, "giant");
    FAIL() << "expected DeviceError";
  } catch (const DeviceLost&) {
    FAIL() << "a refusal leaves the device alive";
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(std::to_string(size_t{1} << 60)), std::string::npos) << message;
    EXPECT_NE(message.find("4096 bytes in use"), std::string::npos) << message;
    EXPECT_NE(message.find("giant"), std::string::npos) << message;
  }
  device_->release(held);
  EXPECT_NE(allocate(64), nullptr);
}

TEST_P(Conformance, Imports) {
  alignas(64) static std::array<uint32_t, kRows> memory;
  memory.fill(7);
  const Allocation* import =
      device_->allocate({kRowsBytes, "import", MemoryKind::import_host, memory.data()});
  EXPECT_EQ(import->host, memory.data());
  const Allocation* sum = cells();
  PlanBuilder builder;
  builder.add(kAdd, {in(view(import)), in(view(import)), out(view(sum))}, {.launch = rows(kRows)});
  const auto program = device_->prepare(builder.plan, {});
  ASSERT_TRUE(wait(submit(*program)));
  for (const uint32_t value : contents<uint32_t>(sum)) EXPECT_EQ(value, 14u);
  device_->release(import);
  EXPECT_EQ(memory[0], 7u);
}

TEST_P(Conformance, WriteAndRead) {
  // Sizes around those of staging; parts at any offset; nothing beside them changes.
  constexpr size_t kSize = (size_t{3} << 20) + 5;
  const Allocation* memory = allocate(kSize);
  std::vector<std::byte> expected(kSize);
  std::mt19937 random(1);
  for (const auto& [offset, bytes] : {std::pair<size_t, size_t>{0, kSize},
                                      {1, 1},
                                      {kSize - 1, 1},
                                      {63, (size_t{64} << 10) - 1},
                                      {4096, size_t{64} << 10},
                                      {5, (size_t{64} << 10) + 1},
                                      {77, size_t{1} << 20},
                                      {kSize, 0}}) {
    std::vector<std::byte> part(bytes);
    for (std::byte& byte : part) byte = static_cast<std::byte>(random());
    device_->write(view(memory, offset, bytes), part);
    std::ranges::copy(part, expected.begin() + static_cast<ptrdiff_t>(offset));
    std::vector<std::byte> found(bytes);
    device_->read(view(memory, offset, bytes), found);
    EXPECT_TRUE(found == part) << bytes << " bytes at " << offset;
    EXPECT_TRUE(contents<std::byte>(memory) == expected) << bytes << " bytes at " << offset;
  }
}

TEST_P(Conformance, WriteReadFromThreads) {
  constexpr uint32_t kThreads = 4, kCells = 1000;
  const Allocation* memory = cells(kThreads * kCells);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const BufferView part = view(memory, t * kCells * 4, kCells * 4);
      for (uint32_t i = 0; i < 50; ++i) {
        const std::vector<uint32_t> values(kCells, t * 1000 + i);
        device_->write(part, std::as_bytes(std::span(values)));
        std::vector<uint32_t> found(kCells);
        device_->read(part, std::as_writable_bytes(std::span(found)));
        EXPECT_EQ(found, values);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(Conformance, HostMemory) {
  // Both reach it in place: what the host writes a command reads, and the other way.
  const size_t before = device_->memory().used_bytes;
  const Allocation* from = device_->allocate({kRowsBytes, "from", MemoryKind::host});
  const Allocation* to = device_->allocate({kRowsBytes, "to", MemoryKind::host});
  const Allocation* between = cells();
  ASSERT_NE(from->host, nullptr);
  ASSERT_NE(to->host, nullptr);
  auto* input = static_cast<uint32_t*>(from->host);
  const auto* output = static_cast<const uint32_t*>(to->host);
  EXPECT_EQ(std::count(input, input + kRows, 0u), kRows) << "zeroed";
  PlanBuilder builder;
  builder.add(kCopy, {in(view(from)), out(view(between))}, {.launch = rows(kRows)});
  builder.add(kAdd, {in(view(between)), in(view(from)), out(view(to))}, {.launch = rows(kRows)});
  builder.derive_deps();
  const auto program = device_->prepare(builder.plan, {});
  for (uint32_t step = 1; step <= 20; ++step) {
    for (uint32_t i = 0; i < kRows; ++i) input[i] = 10 * step + i;
    ASSERT_TRUE(wait(submit(*program)));
    for (uint32_t i = 0; i < kRows; ++i) ASSERT_EQ(output[i], 2 * (10 * step + i));
  }
  put(*device_, view(from, 4, 4), 7u);
  EXPECT_EQ(input[1], 7u) << "it is read and written as any other";
  for (const Allocation* allocation : {from, to, between}) device_->release(allocation);
  EXPECT_EQ(device_->memory().used_bytes, before);
}

TEST_P(Conformance, DeviceImports) {
  // Where device addresses are the host's, an array stands for memory that another owner has on the device.
  alignas(64) static std::array<uint32_t, kRows> memory;
  memory.fill(7);
  const Allocation* import =
      device_->allocate({.bytes = kRowsBytes,
                         .label = "import",
                         .kind = MemoryKind::import_device,
                         .device_address = reinterpret_cast<uintptr_t>(memory.data())});
  EXPECT_EQ(import->device_address, reinterpret_cast<uintptr_t>(memory.data()));
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(import))}, {.launch = rows(kRows), .constants = {1, 0, 0, 0}});
  const auto program = device_->prepare(builder.plan, {});
  ASSERT_TRUE(wait(submit(*program)));
  EXPECT_EQ(contents<uint32_t>(import), std::vector<uint32_t>(kRows, 8));
  device_->release(import);
  EXPECT_EQ(memory[0], 8u);
}

TEST_P(Conformance, Advise) {
  constexpr size_t kBytes = size_t{4} << 20, kPart = size_t{1} << 20;
  const Allocation* probe = allocate(1 << 16);
  device_->write(view(probe), std::vector(probe->bytes, std::byte{1}));
  const bool tells = device_->memory().resident_bytes > 0;  // else there is nothing to be seen of residency

  const Allocation* allocation = allocate(kBytes);
  const MemoryUsage before = device_->memory();
  // A GPU's memory is resident from the start.
  const size_t resident = std::min(before.resident_bytes + kPart, before.used_bytes);
  const BufferView part = view(allocation, 4100, kPart);
  device_->advise({&part, 1}, Advice::will_need);
  if (tells) {
    EXPECT_GE(device_->memory().resident_bytes, resident);
  }
  EXPECT_EQ(device_->memory().locked_bytes, before.locked_bytes) << "needed, not kept";

  std::vector<std::byte> content(kBytes);
  for (size_t i = 0; i < kBytes; ++i) content[i] = static_cast<std::byte>(i * 7 + i / 251);
  device_->write(view(allocation), content);
  const std::vector<std::byte> written =
      contents<std::byte>(allocation);  // nothing, where there is no memory
  for (const Advice advice : {Advice::will_need, Advice::resident, Advice::evictable, Advice::resident}) {
    device_->advise({&part, 1}, advice);
    const MemoryUsage now = device_->memory();
    EXPECT_EQ(now.used_bytes, before.used_bytes);
    EXPECT_LE(now.locked_bytes, before.locked_bytes + kPart) << "no more than was asked for";
    if (advice != Advice::resident) {
      EXPECT_EQ(now.locked_bytes, before.locked_bytes);
    }
    if (tells && advice != Advice::evictable) {
      EXPECT_GE(now.resident_bytes, resident);
    }
    EXPECT_TRUE(contents<std::byte>(allocation) == written);
  }
  // What is kept goes with its allocation.
  device_->release(allocation);
  EXPECT_EQ(device_->memory().locked_bytes, before.locked_bytes);
  EXPECT_EQ(device_->memory().used_bytes, before.used_bytes - kBytes);
  if (tells) {
    EXPECT_LE(device_->memory().resident_bytes, before.resident_bytes);
  }
}

}  // namespace
}  // namespace refrain::backend::testing

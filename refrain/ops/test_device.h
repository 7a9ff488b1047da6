// Runs one call of a kernel on a device, for tests of ops: arrays go to the device's memory, and what the call
// wrote comes back. Included by testing.h. Only for tests and benchmarks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/cuda/loader.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/checked.h"
#include "refrain/ops/decode_sets/tiles.h"
#include "refrain/ops/kernel_tables.h"

namespace refrain::ops::harness {

/// A device that tests of ops run on.
struct TestDevice {
  std::vector<backend::Kernel> kernels;  ///< its own, tested in place of the host's; none: it runs the host's
  std::unique_ptr<backend::Backend> backend;
};

inline TestDevice open_test_device(std::string_view name) {
  TestDevice device;
  if (name == "remote") {
    backend::CpuOptions options;
    options.threads = 2;
    device.backend = backend::make_validate(backend::make_remote(backend::make_cpu(options, {})));
  } else if (name.starts_with("cuda:")) {
    const backend::cuda::Plugin& plugin = backend::cuda::open_plugin({});
    device.kernels = backend::cuda::bind_plugin(plugin, all_schemas(), all_layouts()).kernels;
    backend::cuda::CudaOptions options;
    options.ordinal = static_cast<uint32_t>(std::stoul(std::string(name.substr(5))));
    device.backend = backend::make_validate(plugin.open(options, device.kernels));
  } else {
    throw InvalidArgument("REFRAIN_TEST_DEVICE: expected remote or cuda:N");
  }
  return device;
}

/// The device that REFRAIN_TEST_DEVICE names: calls then run there. None: tests walk tiles themselves.
inline const TestDevice* test_device() {
  static const TestDevice device = [] {
    const char* name = std::getenv("REFRAIN_TEST_DEVICE");
    return name == nullptr ? TestDevice() : open_test_device(name);
  }();
  return device.backend != nullptr ? &device : nullptr;
}

/// Memory of the host that a call is bound to.
struct BoundBytes {
  std::byte* data = nullptr;
  size_t bytes = 0;  ///< 0: not bound
  backend::Access access = backend::Access::in;
  bool weight = false;
};

/// Runs `kernel` once on `device`. Arrays that share bytes share them there. What the call may only read has to
/// be as it was.
inline void run_on(backend::Backend& device, const backend::Kernel& kernel, const backend::OpCall& call,
                   std::span<const BoundBytes> args, uint32_t live_rows) {
  using backend::Access;
  struct Block {
    std::byte* begin = nullptr;
    std::byte* end = nullptr;
    bool written = false;
    const backend::Allocation* memory = nullptr;
    size_t offset_bytes() const { return reinterpret_cast<uintptr_t>(begin) % 64; }
    backend::BufferView view() const { return {memory, offset_bytes(), static_cast<size_t>(end - begin)}; }
  };
  std::vector<Block> blocks;
  for (const BoundBytes& arg : args) {
    if (arg.bytes != 0) blocks.push_back({arg.data, arg.data + arg.bytes, arg.access != Access::in, nullptr});
  }
  std::ranges::sort(blocks, {}, &Block::begin);
  for (size_t i = 1; i < blocks.size();) {
    Block& before = blocks[i - 1];
    if (blocks[i].begin >= before.end) {
      ++i;
      continue;
    }
    before.end = std::max(before.end, blocks[i].end);
    before.written = before.written || blocks[i].written;
    blocks.erase(blocks.begin() + static_cast<ptrdiff_t>(i));
  }
  for (Block& block : blocks) {
    const auto bytes = static_cast<size_t>(block.end - block.begin);
    block.memory = device.allocate({block.offset_bytes() + bytes, "array"});
    device.write(block.view(), {block.begin, bytes});
  }

  backend::PlanData plan;
  for (const BoundBytes& arg : args) {
    backend::Argument& bound = plan.args.emplace_back();
    bound.access = arg.access;
    bound.sealed = arg.weight;
    if (arg.bytes == 0) continue;
    const auto block = std::ranges::find_if(
        blocks, [&](const Block& b) { return b.begin <= arg.data && arg.data + arg.bytes <= b.end; });
    bound.view = {block->memory, block->offset_bytes() + static_cast<size_t>(arg.data - block->begin),
                  arg.bytes};
  }
  backend::PlanCommand command;
  command.kernel = &kernel;
  command.launch = kernel.launch(call, device.info);
  command.live_arg = static_cast<uint32_t>(plan.args.size());
  const backend::Allocation* live = device.allocate({sizeof(live_rows), "live rows"});
  device.write({live, 0, sizeof(live_rows)}, std::as_bytes(std::span(&live_rows, 1)));
  plan.args.push_back({{live, 0, sizeof(live_rows)}, Access::in, false});
  const backend::Allocation* scratch = nullptr;
  if (const size_t bytes = scratch_bytes(command.launch, device.info); bytes != 0) {
    scratch = device.allocate({bytes, "scratch"});
    device.write({scratch, 0, bytes}, std::vector(bytes, std::byte{0xA5}));
    command.scratch_arg = static_cast<uint32_t>(plan.args.size());
    plan.args.push_back({{scratch, 0, bytes}, Access::inout, false});
  }
  plan.ticket_bytes = command.launch.ticket_bytes;
  command.args = {0, static_cast<uint32_t>(plan.args.size())};
  plan.constants.assign(call.constants.begin(), call.constants.end());
  plan.constants.resize(align_up(plan.constants.size(), 16));
  command.constants = {0, static_cast<uint32_t>(call.constants.size())};
  plan.labels = {"call"};
  plan.commands.push_back(command);
  {
    const auto program = device.prepare(plan, {});
    // Counters that a run leaves as it should serve the next one.
    for (int run = 0; run < (plan.ticket_bytes != 0 ? 2 : 1); ++run)
      ASSERT_TRUE(device.wait(device.submit({program.get(), {}, {}}), std::chrono::minutes(5)));
  }

  for (const Block& block : blocks) {
    const std::span<std::byte> host(block.begin, block.end);
    std::vector<std::byte> found(host.size());
    device.read(block.view(), found);
    if (block.written) {
      std::ranges::copy(found, host.begin());
    } else {
      EXPECT_TRUE(std::ranges::equal(found, host)) << kernel.name << " wrote what it may only read";
    }
    device.release(block.memory);
  }
  device.release(live);
  if (scratch != nullptr) device.release(scratch);
}

}  // namespace refrain::ops::harness

// Ops for tests of the recorder and the passes, with kernels that any host can run in a few instructions. No
// ops of the library: those are tested in their folders.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "refrain/backend/kernel.h"
#include "refrain/backend/plan.h"
#include "refrain/core/error.h"

namespace refrain::null_tests {

using backend::Access;
using backend::ArgumentSpec;
using backend::OpCall;
using backend::OpSchema;
using backend::TileArgs;

inline uint32_t mixed(uint32_t a, uint32_t b) {
  a = (a ^ (b + 0x9e3779b9u + (a << 6) + (a >> 2))) * 0x85ebca6bu;
  return a ^ (a >> 15);
}

/// Elements of each argument, so that a kernel needs no shapes.
struct MixConstants {
  uint32_t salt = 0;
  uint32_t a = 0, b = 0, output = 0;
};

/// u32, or activations, which become f32.
inline void check_dtypes(const OpCall& call) {
  for (size_t i = 0; i < call.args.size(); ++i) {
    const backend::ArgumentInfo& arg = call.args[i];
    if (arg.bound && arg.dtype != DType::u32 && arg.dtype != DType::activation && arg.dtype != DType::f32) {
      throw InvalidArgument(std::string("[").append(call.op->name) + "] " +
                            std::string(call.op->args[i].name) + ": expected u32, got " +
                            std::string(name(arg.dtype)));
    }
  }
}

// output[i] = mixed(a[i], b[i], salt), inputs repeated; may be in place of a of the same bytes.
inline constexpr ArgumentSpec kMixArgs[] = {
    {"a", Access::in}, {"b", Access::in, false, true}, {"output", Access::out, false, false, 1}};
inline constexpr OpSchema kMix{"mix", kMixArgs, sizeof(MixConstants), check_dtypes};

// target[i] = mixed(target[i], a[i], salt).
inline constexpr ArgumentSpec kUpdateArgs[] = {{"a", Access::in}, {"target", Access::inout}};
inline constexpr OpSchema kUpdate{"update", kUpdateArgs, sizeof(MixConstants), check_dtypes};

// Row by row: output[r] = mixed(a[r], salt), for live rows of `a` elements; may be in place of a.
inline constexpr ArgumentSpec kRowsArgs[] = {{"a", Access::in, true},
                                             {"output", Access::out, true, false, 1}};
inline constexpr OpSchema kRows{"rows", kRowsArgs, sizeof(MixConstants), check_dtypes};

// As update of a alone, with status words and two outputs, for errors of binding.
inline constexpr ArgumentSpec kPairArgs[] = {{"input", Access::in},
                                             {"status", Access::accumulate, false, true},
                                             {"first", Access::out},
                                             {"second", Access::out, false, true}};
inline constexpr OpSchema kPair{"pair", kPairArgs, 0, nullptr};

// output[i] = mixed(a[i], salt), a repeated; a[0] is ORed into status[0] as well. Output may be in place of a.
inline constexpr ArgumentSpec kNoteArgs[] = {
    {"a", Access::in}, {"status", Access::accumulate}, {"output", Access::out, false, false, 1}};
inline constexpr OpSchema kNote{"note", kNoteArgs, sizeof(MixConstants), check_dtypes};

// Bound to everything that a dispatch has: the op of measurements.
inline constexpr ArgumentSpec kFourArgs[] = {{"input", Access::in, true},
                                             {"weight", Access::in},
                                             {"residual", Access::in, true},
                                             {"output", Access::out, true, false, 4}};
inline constexpr OpSchema kFour{"four", kFourArgs, sizeof(MixConstants), nullptr};

inline void run_mix(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  const auto *a = args.arg<uint32_t>(0), *b = args.arg<uint32_t>(1);
  auto* output = args.arg<uint32_t>(2);
  for (uint32_t i = 0; i < c.output; ++i) {
    output[i] = mixed(mixed(a[i % c.a], b == nullptr ? 0 : b[i % c.b]), c.salt);
  }
}

inline void run_update(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  const auto* a = args.arg<uint32_t>(0);
  auto* target = args.arg<uint32_t>(1);
  for (uint32_t i = 0; i < c.output; ++i) target[i] = mixed(mixed(target[i], a[i % c.a]), c.salt);
}

inline void run_note(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  const auto* a = args.arg<uint32_t>(0);
  auto* output = args.arg<uint32_t>(2);
  std::atomic_ref<uint32_t>(*args.arg<uint32_t>(1)).fetch_or(a[0], std::memory_order_relaxed);
  for (uint32_t i = 0; i < c.output; ++i) output[i] = mixed(a[i % c.a], c.salt);
}

inline void run_rows(const TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<MixConstants>();
  const auto* a = args.arg<uint32_t>(0);
  auto* output = args.arg<uint32_t>(1);
  for (uint32_t i = begin * c.a; i < std::min(end, args.live_rows) * c.a; ++i)
    output[i] = mixed(a[i], c.salt);
}

inline constexpr backend::TileKernel kRunMix{nullptr, nullptr, run_mix};
inline constexpr backend::TileKernel kRunUpdate{nullptr, nullptr, run_update};
inline constexpr backend::TileKernel kRunNote{nullptr, nullptr, run_note};
inline constexpr backend::TileKernel kRunRows{nullptr, nullptr, run_rows};
inline constexpr backend::TileKernel kRunNothing{nullptr, nullptr,
                                                 [](const TileArgs&, uint32_t, uint32_t) {}};

inline bool any(const OpCall&) { return true; }
inline bool with_scratch(const OpCall& call) { return call.constants_as<MixConstants>().salt % 4 == 0; }
inline backend::Launch one_tile(const OpCall&, const backend::DeviceInfo&) { return {}; }
inline backend::Launch one_tile_and_scratch(const OpCall& call, const backend::DeviceInfo&) {
  return {1, 1, 1, 32 + call.constants_as<MixConstants>().salt % 256};
}
inline backend::Launch tile_per_row(const OpCall& call, const backend::DeviceInfo&) {
  return {static_cast<uint32_t>(call.args[0].shape[0]), 1, 1, 0};
}

inline constexpr backend::Kernel kKernels[] = {
    {"mix_of_the_future", &kMix, "test", uint64_t{1} << 63, 0, any, one_tile, &kRunNothing},
    {"mix_scratch", &kMix, "test", 0, 0, with_scratch, one_tile_and_scratch, &kRunMix},
    {"mix", &kMix, "test", 0, 0, any, one_tile, &kRunMix},
    {"update", &kUpdate, "test", 0, 0, any, one_tile, &kRunUpdate},
    {"rows", &kRows, "test", 0, 0, any, tile_per_row, &kRunRows},
    {"note", &kNote, "test", 0, 0, any, one_tile, &kRunNote},
    {"pair", &kPair, "test", 0, 0, any, one_tile, &kRunNothing},
    {"four", &kFour, "test", 0, 0, any, one_tile, &kRunNothing},
};

/// Runs the commands of a plan on the host, one at a time in the order given, and spoils all scratch.
inline void run_plan(const backend::PlanData& plan, std::span<const uint32_t> order, std::byte* arena) {
  for (const uint32_t index : order) {
    const backend::PlanCommand& command = plan.commands[index];
    if (command.kind == backend::CommandKind::fence) continue;
    std::array<void*, 8> pointers{};
    for (uint32_t a = 0; a < command.args.count; ++a) {
      const backend::BufferView& view = plan.args[command.args.first + a].view;
      auto* base = view.allocation == nullptr ? arena : static_cast<std::byte*>(view.allocation->host);
      pointers[a] = view.bytes == 0 ? nullptr : base + view.offset_bytes;
    }
    TileArgs args;
    args.args = pointers.data();
    args.constants = plan.constants.data() + command.constants.first;
    args.live_rows = command.launch.rows;
    if (command.live_arg != backend::kNone) {
      args.live_rows = std::min(args.live_rows, *static_cast<const uint32_t*>(pointers[command.live_arg]));
    }
    if (command.scratch_arg != backend::kNone) {
      const backend::Argument& scratch = plan.args[command.args.first + command.scratch_arg];
      args.scratch = static_cast<std::byte*>(pointers[command.scratch_arg]);
      std::fill_n(args.scratch, scratch.view.bytes, std::byte{0xA5});
    }
    const uint32_t tiles = backend::CommandKind::kernel == command.kind ? args.live_rows : 0;
    static_cast<const backend::TileKernel*>(command.kernel->entry)->tiles(args, 0, tiles);
  }
}

}  // namespace refrain::null_tests

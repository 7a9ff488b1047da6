// What the tests of ops share: aligned arrays, random values, packed weights, and Call, which runs a kernel
// or the reference on plain memory without a device: it walks tiles in a given split and order. With a device
// in REFRAIN_TEST_DEVICE kernels run there instead. Only for tests and benchmarks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/features.h"
#include "refrain/backend/kernel.h"
#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/test_device.h"
#include "refrain/ops/test_weights.h"

namespace refrain::ops::harness {

/// What the machine offers, in bits of backend/features.h.
inline uint64_t machine_features() {
#if defined(__x86_64__)
  // Every processor with AVX2 has F16C, which Clang 16 cannot ask for.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return backend::kFeatureAvx2;
#endif
  return 0;
}

/// A device that takes `workers` of this machine; for Kernel::launch.
inline backend::DeviceInfo machine(uint32_t workers = 2) {
  backend::DeviceInfo info;
  info.backend = "cpu";
  info.features = machine_features();
  info.compute_units = workers;
  info.host_memory = true;
  return info;
}

/// Every kernel of an op that the tested device can run: its own, where it has some, or the host's.
inline std::vector<const backend::Kernel*> kernels_of(const backend::OpSchema& op) {
  static const std::vector<backend::Kernel> host_kernels = cpu_kernels();
  const TestDevice* device = test_device();
  const bool own = device != nullptr && !device->kernels.empty();
  const uint64_t features = own ? device->backend->info.features : machine_features();
  std::vector<const backend::Kernel*> list;
  for (const backend::Kernel& kernel : own ? device->kernels : host_kernels) {
    if (kernel.op == &op && (kernel.needs & ~features) == 0) list.push_back(&kernel);
  }
  // A device of its own kernels may lack an op; the host has all.
  if (list.empty() && !own)
    throw InvalidArgument("kernels_of " + std::string(op.name) + ": expected some, got none");
  return list;
}

/// The kernel of an op that has one.
inline const backend::Kernel& kernel_of(const backend::OpSchema& op) {
  const std::vector<const backend::Kernel*> list = kernels_of(op);
  if (list.size() != 1)
    throw InvalidArgument("kernel_of: expected one kernel, got " + std::to_string(list.size()));
  return *list.front();
}

/// What Call::run has run in this process.
inline std::set<const backend::Kernel*>& kernels_run() {
  static std::set<const backend::Kernel*> kernels;
  return kernels;
}

/// How the tiles of a command are walked: in pieces of `piece` tiles, backwards or not, dealt to workers in
/// turn.
struct Walk {
  uint32_t piece = UINT32_MAX;
  bool backwards = false;
  uint32_t workers = 1;
  /// Not 0: kernels that compute regions walk random rectangles of rows and units instead, drawn from this
  /// seed.
  uint64_t cuts = 0;
};
inline constexpr std::array<Walk, 7> kWalks{{{},
                                             {1, false, 1},
                                             {1, true, 3},
                                             {3, true, 2},
                                             {.backwards = true, .workers = 2, .cuts = 1},
                                             {.workers = 3, .cuts = 2},
                                             {.backwards = true, .cuts = 3}}};

/// One call of an op on plain memory. Arguments are added in the order of the schema; weights and arrays
/// outlive it.
class Call {
 public:
  explicit Call(const backend::OpSchema& schema) : schema_(&schema), constants_(schema.constants_bytes) {}

  Call& tensor(DType dtype, const Shape& shape, void* data) {
    infos_.push_back({true, dtype, shape, nullptr, nullptr});
    args_.push_back(data);
    return *this;
  }
  template <class T>
  Call& tensor(const Shape& shape, const Array<T>& array) {
    EXPECT_EQ(static_cast<size_t>(shape.elements()), array.size());
    return tensor(DTypeOf<T>::value, shape, array.data());
  }
  Call& weight(const PackedWeight& weight) {
    infos_.push_back({true, weight.info.dtype(), weight.info.shape, &weight.info, weight.layout});
    args_.push_back(weight.bytes.data());
    return *this;
  }
  Call& none() {
    infos_.emplace_back();
    args_.push_back(nullptr);
    return *this;
  }
  template <class Constants>
  Call& constants(const Constants& value) {
    constants_ = Array<std::byte>(sizeof(value));
    std::memcpy(constants_.data(), &value, sizeof(value));
    return *this;
  }

  /// For tests of the check that change one thing of a good call.
  backend::ArgumentInfo& info(size_t index) { return infos_[index]; }

  backend::OpCall op_call() const { return {schema_, infos_, constants_.span()}; }
  /// As recording does: the constants are then those of the shapes.
  void check() const {
    backend::check_dtypes(op_call());
    schema_->check(op_call());
    if (schema_->complete != nullptr) schema_->complete(op_call(), constants_.data());
  }
  /// What the check throws; empty when it passes.
  std::string check_error() const {
    try {
      check();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return {};
  }

  bool accepted_by(const backend::Kernel& kernel) const { return kernel.accepts(op_call()); }
  /// Those of kernels_of() that take this call.
  std::vector<const backend::Kernel*> kernels() const {
    std::vector<const backend::Kernel*> list = kernels_of(*schema_);
    std::erase_if(list, [&](const backend::Kernel* kernel) { return !accepted_by(*kernel); });
    return list;
  }

  void reference(uint32_t live_rows) const {
    check();
    schema_->reference(tile_args(live_rows, nullptr));
  }

  /// Checks the call, then runs the kernel as a backend does: the live count is clamped to the capacity, each
  /// worker has scratch of its own, filled with rubbish, and runs the prologue once.
  void run(const backend::Kernel& kernel, uint32_t live_rows, const Walk& walk = {}) const {
    check();
    ASSERT_EQ(kernel.op, schema_);
    ASSERT_TRUE(accepted_by(kernel)) << kernel.name;
    kernels_run().insert(&kernel);
    const TestDevice* const device = test_device();
    const backend::Launch launch =
        kernel.launch(op_call(), device != nullptr ? device->backend->info : machine(walk.workers));
    EXPECT_EQ(launch.scratch_bytes % 64, 0u) << kernel.name;
    ASSERT_GT(launch.rows_per_block, 0u);
    ASSERT_GT(launch.tiles_per_block, 0u);
    if (device != nullptr) {
      run_on(*device->backend, kernel, op_call(), bound_bytes(), live_rows);
      return;
    }
    const uint32_t live = std::min(live_rows, launch.rows);
    const uint32_t tiles = ceil_div(live, launch.rows_per_block) * launch.tiles_per_block;
    const auto& entry = *static_cast<const backend::TileKernel*>(kernel.entry);
    std::vector<Array<std::byte>> scratch;
    const size_t group_bytes = walk.cuts != 0 ? align_up(live * launch.row_scratch_bytes, 64) : 0;
    for (uint32_t i = 0; i < walk.workers; ++i)
      scratch.emplace_back(std::max(launch.scratch_bytes, group_bytes), std::byte{0xA5});
    if (entry.prefetch != nullptr) entry.prefetch(tile_args(live, nullptr));
    for (uint32_t i = 0; i < walk.workers; ++i) {
      if (entry.prologue != nullptr) entry.prologue(tile_args(live, scratch[i].data()));
    }
    if (kernel.regions && walk.cuts != 0) {
      run_regions(entry, live, walk, scratch);
      return;
    }
    const uint32_t piece = std::min(walk.piece, std::max(tiles, 1u));
    const uint32_t pieces = ceil_div(tiles, piece);
    for (uint32_t i = 0; i < pieces; ++i) {
      const uint32_t begin = (walk.backwards ? pieces - 1 - i : i) * piece;
      entry.tiles(tile_args(live, scratch[i % walk.workers].data()), begin, std::min(begin + piece, tiles));
    }
  }

 private:
  std::vector<BoundBytes> bound_bytes() const {
    std::vector<BoundBytes> bound;
    for (size_t i = 0; i < infos_.size(); ++i) {
      const backend::ArgumentInfo& info = infos_[i];
      const size_t elements = static_cast<size_t>(info.shape.elements());
      const size_t bytes = !info.bound              ? 0
                           : info.weight != nullptr ? info.layout->packed_bytes(*info.weight)
                                                    : elements * size_bytes(info.dtype);
      bound.push_back(
          {static_cast<std::byte*>(args_[i]), bytes, schema_->args[i].access, info.weight != nullptr});
    }
    return bound;
  }

  /// Cuts rows into blocks and the units of each block anew, at random; blocks of one unit and of all occur.
  void run_regions(const backend::TileKernel& entry, uint32_t live, const Walk& walk,
                   std::vector<Array<std::byte>>& scratch) const {
    ASSERT_NE(entry.region, nullptr);
    ASSERT_NE(schema_->units, nullptr);
    const uint32_t units = schema_->units(op_call());
    Random random(walk.cuts);
    const auto cut = [&](uint32_t size) {
      const uint32_t largest = 1 + random.below(size);
      std::vector<uint32_t> ends;
      for (uint32_t at = 0; at < size; ends.push_back(at))
        at += 1 + random.below(std::min(largest, size - at));
      return ends;
    };
    std::vector<std::array<uint32_t, 4>> regions;
    if (live > 0) {
      uint32_t row = 0;
      for (const uint32_t row_end : cut(live)) {
        uint32_t unit = 0;
        for (const uint32_t unit_end : cut(units)) {
          regions.push_back({row, row_end, unit, unit_end});
          unit = unit_end;
        }
        row = row_end;
      }
    }
    if (walk.backwards) std::ranges::reverse(regions);
    std::vector<std::array<uint32_t, 2>> held(walk.workers);  // the rows that each worker has in its scratch
    for (size_t i = 0; i < regions.size(); ++i) {
      const auto& [row, row_end, unit, unit_end] = regions[i];
      const uint32_t worker = i % walk.workers;
      const backend::TileArgs args = tile_args(live, scratch[worker].data());
      if (entry.rows_prologue != nullptr && held[worker] != std::array{row, row_end}) {
        entry.rows_prologue(args, row, row_end);
        held[worker] = {row, row_end};
      }
      entry.region(args, row, row_end, unit, unit_end);
    }
  }

  backend::TileArgs tile_args(uint32_t live_rows, std::byte* scratch) const {
    return {args_.data(), constants_.data(), scratch, live_rows};
  }

  const backend::OpSchema* schema_;
  std::vector<backend::ArgumentInfo> infos_;
  std::vector<void*> args_;
  Array<std::byte> constants_;
};

/// Half the distance between 1 and the next float: the greatest relative error of one rounding.
inline constexpr double kUnitRoundoff = 0x1p-24;

/// The greatest |a - b| beyond `tolerance(index)`; 0 or less when all are within.
template <class Tolerance>
double excess(const Array<float>& a, const Array<float>& b, Tolerance tolerance) {
  double worst = -1;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
    if (std::isnan(a[i]) || a[i] == b[i]) continue;
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])) - tolerance(i));
  }
  return worst;
}

}  // namespace refrain::ops::harness

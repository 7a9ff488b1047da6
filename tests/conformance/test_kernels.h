// Small tile kernels on u32 cells, for tests of backends, and a builder of plans from them. Not part of the
// library.
//
// A backend that does not walk TileKernels needs kernels of the same names to run this suite.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain::backend::testing {

/// The constants of every test kernel.
struct Constants {
  uint32_t value = 0;
  uint32_t delay_us = 0;  ///< slept before each tile's work
  uint32_t seed = 0;      ///< when not 0, the delay of each tile is random below delay_us
  uint32_t reserved = 0;
};

/// What a worker keeps in its scratch for `record`.
struct alignas(64) WorkerRecord {
  uint64_t thread = 0;
  uint32_t prologues = 0;
  uint32_t tiles = 0;
  uint32_t broken = 0;  ///< the scratch was changed by another worker
};

extern const Kernel kFill;        ///< out: value
extern const Kernel kCopy;        ///< in, out: out = in
extern const Kernel kAdd;         ///< in, in, out: out = a + b
extern const Kernel kIncrement;   ///< inout: += value, on live rows
extern const Kernel kAppend;      ///< in, inout log: log[1 + log[0]++] = in[0]
extern const Kernel kThread;      ///< out u64 a row: the thread that ran the row
extern const Kernel kRecord;      ///< inout u32 a row, scratch WorkerRecord: += 1
extern const Kernel kPrefetched;  ///< in, out: out = in; argument 0 may be prefetched
/// status word, out: ORs 1 << value into the word and waits until the other of bits 0 and 1 is there as well,
/// so that two of them end only when both run at once; out = 1, or 0 when the other did not come for long.
extern const Kernel kMeet;
extern const Kernel kThrow;  ///< inout: throws std::runtime_error("row N") at row N = value

/// All of them, as a kernel table.
std::span<const Kernel> test_kernels();

/// Calls of kPrefetched's prefetch so far.
uint32_t prefetch_calls();

/// Builds a PlanData by hand.
class PlanBuilder {
 public:
  struct Options {
    Launch launch = {};
    Constants constants = {};
    std::vector<uint32_t> deps = {};
    Argument live = {};     ///< bytes > 0: the live count
    Argument scratch = {};  ///< bytes > 0: the scratch
    std::string label = {};
  };

  uint32_t add(const Kernel& kernel, std::initializer_list<Argument> args, const Options& options);
  uint32_t fence(std::initializer_list<uint32_t> deps = {});
  /// Replaces all deps by those that follow from overlapping views: each that no other path implies.
  void derive_deps();

  PlanData plan;

 private:
  void set_level(uint32_t index);
};

/// The whole of `allocation`, or a part of it.
BufferView view(const Allocation* allocation);
BufferView view(const Allocation* allocation, size_t offset_bytes, size_t bytes);
BufferView arena_view(size_t offset_bytes, size_t bytes);
Argument in(const BufferView& view);
Argument out(const BufferView& view);
Argument inout(const BufferView& view);
Argument sealed(const BufferView& view);

/// What memory holds, wherever it is.
template <class T>
std::vector<T> contents(const Backend& device, const Allocation* allocation) {
  std::vector<T> values(allocation->bytes / sizeof(T));
  device.read(view(allocation, 0, values.size() * sizeof(T)), std::as_writable_bytes(std::span(values)));
  return values;
}

/// Writes one value to the bytes of a view, which are as many.
template <class T>
void put(Backend& device, const BufferView& to, const T& value) {
  device.write(to, std::as_bytes(std::span(&value, 1)));
}

/// Writes zeros.
void clear(Backend& device, const Allocation* allocation);

}  // namespace refrain::backend::testing

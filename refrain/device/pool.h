// Memory that is used again and again. Not a way to give memory back by hand: there is none.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string_view>

#include "refrain/device/device.h"

namespace refrain {

/// What a buffer of a pool holds at first.
enum class PoolInit : uint8_t {
  zero,         ///< zeros, as Device::buffer gives it
  unspecified,  ///< zeros or what an earlier buffer of the pool left: for what is written before it is read
};

struct PoolOptions {
  PoolInit init = PoolInit::zero;
  size_t limit_bytes = 0;                  ///< most bytes out and free together; 0: what the device gives
  size_t keep_bytes = ~size_t{0};          ///< most bytes kept free; what comes back beyond is released
  std::chrono::nanoseconds patience = {};  ///< at the limit, how long to wait for submissions to complete
};

struct PoolUsage {
  size_t out_bytes = 0;   ///< memory behind buffers that somebody holds or a submission in flight uses
  size_t free_bytes = 0;  ///< memory that the next buffers may get
  uint64_t fresh = 0;     ///< buffers that got new memory from the device
  uint64_t reused = 0;    ///< buffers that got memory that was free
};

/// An arena by completion. A buffer's memory comes back when its last view is gone and the last submission
/// that uses it has completed; this is noticed at the next buffer() or submission. Handing out, a buffer gets
/// the smallest free memory that fits and wastes no more than it uses, and exactly the length asked for.
/// Any thread may use it; copies are the same pool, and buffers may outlive it.
class BufferPool {
 public:
  explicit BufferPool(Device device, const PoolOptions& options = {});

  /// As Device::buffer; free memory is released before the device refuses. Throws DeviceError at limit_bytes.
  Buffer buffer(DType dtype, const Shape& shape, std::string_view label = {});
  /// Releases free memory, the largest first, until at most `keep_bytes` are left.
  void trim(size_t keep_bytes = 0);
  PoolUsage usage();

 private:
  struct State;

  Device device_;
  std::shared_ptr<State> state_;
};

}  // namespace refrain

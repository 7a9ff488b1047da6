// Results of CUDA calls as exceptions: refused, or lost for good.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

namespace refrain::backend::cuda {

/// True for errors after which the device can do nothing any more for this process.
bool is_sticky(cudaError_t error);

/// The state of one device. The first sticky error loses it; any thread may call any function.
class Health {
 public:
  explicit Health(std::string device) : device_(std::move(device)) {}

  /// What was running when the device is found lost, for the message; called once, outside of all locks of this class.
  std::function<std::string()> running;

  /// Throws DeviceError for a refusal, DeviceLost for a sticky error: "cuda:0: WHAT: out of memory".
  void check(cudaError_t result, const char* what);
  /// The same without throwing: true when all is well. A refusal is forgotten, a loss is not.
  bool note(cudaError_t result, const char* what) noexcept;
  bool lost() const noexcept { return lost_.load(std::memory_order_acquire); }
  /// Throws DeviceLost, always the same, once the device is lost.
  void check_live() const {
    if (lost()) throw_lost();
  }
  [[noreturn]] void throw_lost() const;
  const std::string& device() const { return device_; }

 private:
  void lose(cudaError_t result, const char* what) noexcept;

  const std::string device_;
  mutable std::mutex mutex_;
  std::atomic<bool> lost_{false};
  std::string message_;  // written once, before lost_
};

/// Makes a device current for the calls of a function; the thread's own comes back with the end of the scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal) noexcept {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = ordinal;
    if (before_ != ordinal) cudaSetDevice(ordinal);
    changed_ = before_ != ordinal;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace refrain::backend::cuda

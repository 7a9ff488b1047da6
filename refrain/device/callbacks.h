// The functions that when_reached() was given, and the threads that see to them. Internal to device/.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/core/log.h"

namespace refrain {

struct DeviceState;

/// One thread calls all functions. A queue that has functions pending has a thread that waits for its next
/// completion: no later one, so that an earlier point may be added meanwhile. The host's timeline needs none,
/// as signal() tells.
class Callbacks {
 public:
  using Function = std::function<void(std::exception_ptr)>;

  explicit Callbacks(DeviceState& device);
  ~Callbacks() { close(); }
  Callbacks(const Callbacks&) = delete;
  Callbacks& operator=(const Callbacks&) = delete;

  /// `point` has been checked. Throws DeviceLost once the device has been lost, DeviceError when there is no
  /// thread to be had; then nothing will be called.
  void add(const backend::Point& point, Function function);
  /// To be called when the host's timeline has been raised, and when the device has been lost.
  void host_changed() noexcept;
  /// When nothing is in flight any more. What is still pending is called with an error; returns when all has
  /// been called, on the thread of the calls at once.
  void close() noexcept;

 private:
  struct Entry {
    uint64_t value = 0;
    Function function;
    std::exception_ptr error = nullptr;
  };
  using Entries = std::list<Entry>;  // spliced: moving entries cannot fail

  /// What the thread of the calls uses: it may outlive the device by the call that closes it.
  struct Calls {
    explicit Calls(LogCallback log_callback) : log(std::move(log_callback)) {}
    const LogCallback log;
    std::mutex mutex;
    std::condition_variable changed;
    Entries ready;
    bool closed = false;
  };

  static void call_ready(const std::shared_ptr<Calls>& calls);
  void start_threads(uint32_t queue);
  void watch(uint32_t queue);
  uint64_t settle(uint32_t queue) noexcept;
  std::exception_ptr outcome(const backend::Point& point) noexcept;

  DeviceState& device_;
  const std::shared_ptr<Calls> calls_;
  // Guarded by the mutex of calls_.
  std::vector<Entries> pending_;  // by queue
  Entries host_pending_;
  std::vector<std::thread> watchers_;  // by queue, once it is needed
  std::thread caller_;
  bool closing_ = false;
};

}  // namespace refrain

// A word that reaches an epoch, can be waited for by spinning or sleeping, and is never reset.
#pragma once

#include <atomic>
#include <cstdint>

namespace refrain::backend::cpu {

inline constexpr size_t kCacheLineBytes = 64;

/// Told to the processor in a spinning loop.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/// The lowest bit says that somebody sleeps, so that pass() needs no second word and no full barrier: sleeper
/// and passer meet in one atomic variable. Passing releases and seeing it acquires; going to sleep orders
/// nothing, so that ThreadSanitizer sees no order but that of the gates.
class Gate {
 public:
  static constexpr uint32_t kMaxEpoch = UINT32_MAX >> 1;

  bool passed(uint32_t epoch) const { return word_.load(std::memory_order_acquire) >> 1 == epoch; }
  uint32_t epoch() const { return word_.load(std::memory_order_acquire) >> 1; }

  void pass(uint32_t epoch) {
    if ((word_.exchange(epoch << 1, std::memory_order_release) & 1u) != 0) word_.notify_all();
  }

  /// Sleeps while the epoch is not `epoch` and has not changed; may also return for no reason.
  void sleep_until(uint32_t epoch) {
    const uint32_t word = word_.load(std::memory_order_relaxed);
    if (word >> 1 != epoch) sleep_on(word);
  }

  /// Sleeps while the epoch is `epoch`; may also return for no reason.
  void sleep_while(uint32_t epoch) {
    const uint32_t word = word_.load(std::memory_order_relaxed);
    if (word >> 1 == epoch) sleep_on(word);
  }

  /// Only while nobody else uses it.
  void reset() { word_.store(0, std::memory_order_relaxed); }

 private:
  void sleep_on(uint32_t word) {
    if ((word & 1u) == 0 && !word_.compare_exchange_strong(word, word | 1u, std::memory_order_relaxed))
      return;
    word_.wait(word | 1u, std::memory_order_relaxed);
  }

  std::atomic<uint32_t> word_{0};
};

}  // namespace refrain::backend::cpu
